"""What a user can mend is told in one line; a fault of the code keeps its traceback."""

import pytest

from dtufc import config
from dtufc.bitstream import BitstreamError
from dtufc.errors import UserError
from dtufc.feature import FeatureError
from dtufc.rans import RansError


@pytest.mark.parametrize("kind", [UserError, FeatureError, BitstreamError, FileNotFoundError])
def test_user_errors_end_in_one_line(kind):
    with pytest.raises(SystemExit, match=r"^error: x\.npy: what is wrong$"), config.report_errors():
        raise kind("x.npy: what is wrong")


@pytest.mark.parametrize("kind", [ValueError, RansError, KeyError, TypeError])
def test_faults_keep_their_traceback(kind):
    with pytest.raises(kind), config.report_errors():
        raise kind("a fault")
