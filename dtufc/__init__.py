"""DT-UFC: universal feature coding for large models.

import dtufc
codec = dtufc.load_codec(folder)
data = codec.encode(feature)
"""

from dtufc.bitstream import BitstreamError
from dtufc.codec import Codec, load_codec
from dtufc.errors import UserError
from dtufc.feature import FeatureError

__all__ = ["BitstreamError", "Codec", "FeatureError", "UserError", "load_codec"]
