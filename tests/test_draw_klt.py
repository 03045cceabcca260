"""The pictures of klt's stages: what they show is what the codec does."""

import sys

import numpy as np
import pytest
from PIL import Image
from test_klt_lanes import toy_codec

from dtufc.errors import UserError
from dtufc.feature import write_feature
from dtufc.klt import trellis
from dtufc.paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))  # scripts are no package

import draw_klt
from benches import draw_klt as drawing


@pytest.fixture(scope="module")
def codec():
    return toy_codec()


def test_a_token_is_followed_to_its_end(codec):
    coded, draw = codec
    x = draw(30)
    token = drawing.follow(coded, x, 7)
    assert np.array_equal(token.x, x[0, 0, 7])
    decoded = coded.decode(coded.encode(x[:, :, 7:8]))
    np.testing.assert_allclose(token.decoded, decoded[0, 0, 0], rtol=1e-5, atol=1e-5)
    # in an orthogonal basis the error is that of the components
    fine = trellis.FINE * coded.model.transform.step(coded.grade)
    error = fine * np.linalg.norm(token.values - token.y)
    assert np.linalg.norm(token.decoded - token.x) == pytest.approx(error, rel=1e-2)
    held = np.abs(token.symbols) < 3
    quantiser = token.states[held] & 1
    k = token.symbols[held]
    assert np.abs(token.values[held] - (2 * k - quantiser * np.sign(k))).max() < 1  # but for means
    size = 8 * len(coded.encode_parts(x[:, :, 7:8])[1])
    assert abs(size - token.bits.sum()) < 8 * 9


def test_pictures_are_written(codec, tmp_path):
    coded, draw = codec
    coded.model.save(tmp_path / "codec", 1.0, {})
    write_feature(tmp_path / "features" / "0.npy", draw(30))
    argv = ["--codec", str(tmp_path / "codec"), "--features", str(tmp_path / "features")]
    draw_klt.main([*argv, "--output", str(tmp_path / "klt"), "--token", "3", "--quality", "2"])
    for name in ("stages", "spread"):
        picture = np.asarray(Image.open(tmp_path / f"klt_{name}.png").convert("L"))
        assert min(picture.shape) > 300 and (picture < 128).mean() > 0.002
    with pytest.raises(SystemExit, match=r"token: expected 0 \.\. 29, got 30"):
        draw_klt.main([*argv, "--output", str(tmp_path / "klt"), "--token", "30"])


def test_other_codecs_are_refused():
    from dtufc.codec import load_codec

    with pytest.raises(UserError, match="expected a klt codec of tokens, of format 2"):
        drawing.follow(load_codec("klt_llama3_tiny"), np.zeros((1, 1, 4, 64), np.float32), 0)
