"""Sources: each provides what the table says, machines know none by name, samples stay what they are."""

import importlib
import re
from dataclasses import fields
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from dtufc import files
from dtufc.errors import UserError
from dtufc.machines import sources
from dtufc.machines.dinov2.cls import ClsOptions
from dtufc.machines.dinov2.dpt import DptOptions
from dtufc.machines.dinov2.seg import SegOptions
from dtufc.machines.llama3.llama3 import LlamaOptions
from dtufc.machines.resnet50.cls import ResNetOptions
from dtufc.machines.sd3.sd3 import DiffusionOptions
from dtufc.machines.sources.lists import read_lines, read_picture
from dtufc.machines.whisper.whisper import WhisperOptions
from dtufc.paths import PACKAGE

SORTS = {
    "questions": (LlamaOptions, ("arc", "world")),
    "texts": (LlamaOptions, ("text",)),
    "masked_pictures": (SegOptions, ("voc", "world")),
    "captions": (DiffusionOptions, ("captions", "world")),
    "labelled_pictures": (ResNetOptions, ("imagenet", "world", "plain_world")),
    "depth_pictures": (DptOptions, ("nyu", "plain_world")),
    "utterances": (WhisperOptions, ("speech",)),
}
MODULES = [
    "llama3/llama3.py", "llama3/halves.py", "dinov2/seg.py", "dinov2/segmentation.py", "dinov2/cls.py",
    "dinov2/classification.py", "dinov2/dpt.py", "dinov2/depth.py", "dinov2/halves.py", "sd3/sd3.py",
    "sd3/halves.py", "sd3/judges.py", "resnet50/cls.py", "resnet50/halves.py", "whisper/whisper.py",
    "whisper/halves.py",
]  # fmt: skip


@pytest.mark.parametrize("name", sources.SOURCES)
def test_a_source_provides_what_the_table_says(name, tmp_path):
    source = sources.open_source(name, tmp_path, {}, 0)
    provided = {sort for sort in SORTS if hasattr(source, sort)}
    assert provided == set(sources.SOURCES[name].provides)
    assert source.inputs("test") == []  # no files are there
    told = r"counts: the world|test\.txt: missing.*(scripts/prepare_|--texts|each line names)"
    for sort in provided:
        error = UserError if "world" in name else FileNotFoundError
        with pytest.raises(error, match=told):
            getattr(source, sort)("test")


@pytest.mark.parametrize("sort", SORTS)
def test_machines_take_the_sources_that_provide(sort):
    options, names = SORTS[sort]
    for each in (options, *([ClsOptions] if sort == "labelled_pictures" else [])):
        _check_source(each, names, sort)


def _check_source(options, names, sort):
    (field,) = (field for field in fields(options) if field.name == "source")
    assert names == sources.providers(sort) and set(names) <= set(get_args(field.type))
    assert field.default == get_args(field.type)[0]


@pytest.mark.parametrize("module", MODULES)
def test_machines_know_no_source_by_name(module):
    text = (PACKAGE / "machines" / module).read_text()
    modules = {entry.target.partition(":")[0] for entry in sources.SOURCES.values()}
    names = "|".join(sources.SOURCES.keys() - {"captions"} | modules)
    assert not re.findall(rf"['\"]({names})['\"]|machines\.sources\.({names})\b", text)
    assert "tiny import world" not in text


def test_an_unknown_source_is_named(tmp_path, capsys):
    with pytest.raises(UserError, match=r"source: expected one of arc, voc, .*world, got moon"):
        sources.open_source("moon", tmp_path, {}, 0)
    for module, names in (("llama3.llama3", "'arc', 'world'"), ("sd3.sd3", "'captions', 'world'")):
        with pytest.raises(SystemExit):
            importlib.import_module(f"dtufc.machines.{module}").main(["--source", "voc"])
        assert names in capsys.readouterr().err


def test_the_worlds_samples_stay_what_they_are(tmp_path):
    """Names, order, labels and words of all splits, as they have always been."""
    counts = {"train": 200, "validation": 40, "test": 200}
    source = sources.open_source("world", tmp_path, counts, 0)
    said = []
    for split in counts:
        said += [(q.id, q.stem, q.choices, q.answer) for q in source.questions(split)]
        said += [(c.name, c.text, c.label) for c in source.captions(split)]
        said += [(p.name, p.label) for p in source.labelled_pictures(split)]
        said += [(p.name, p.rgb().shape, p.mask().shape)
                 for p in source.masked_pictures(split)[:20]]  # fmt: skip
    assert (
        files.digest(repr(said))
        == "251b2d3895f2f9f0a657ae35c3f8b33d55712006a9fc331a80a7ff0c40069f7c"
    )


def test_the_worlds_pictures_fit_their_use(tmp_path):
    source = sources.open_source("world", tmp_path, {"test": 3}, 0)
    labelled = source.labelled_pictures("test")[1].rgb(256, 60)
    assert (labelled.shape, labelled.dtype) == ((60, 60, 3), np.uint8)
    masked = source.masked_pictures("test")[1]
    rgb, mask = masked.rgb(), masked.mask()
    assert rgb.shape[:2] == mask.shape and (rgb.dtype, mask.dtype) == (np.uint8, np.uint8)
    assert len(np.unique(mask)) == 2  # the background and the main shape


def test_plain_pictures_are_of_the_same_scenes(tmp_path):
    """Names and labels are the world's; a depth map fits its picture."""
    counts = {"test": 4}
    full, plain = (
        sources.open_source(name, tmp_path, counts, 0) for name in ("world", "plain_world")
    )
    pairs = zip(full.labelled_pictures("test"), plain.labelled_pictures("test"), strict=True)
    for one, other in pairs:
        assert (one.name, one.label) == (other.name, other.label)
        assert not np.array_equal(one.rgb(256, 60), other.rgb(256, 60))
    for picture in plain.depth_pictures("test"):
        rgb, depth = picture.rgb(), picture.depth()
        assert rgb.shape == (120, 150, 3) and depth.shape == (120, 150)
        assert depth.dtype == np.float32 and 1.9 < depth.min() < 4 and depth.max() == 5


def test_nyu_is_read_as_listed(tmp_path):
    """Millimetres become metres; names are of room and picture."""
    room = tmp_path / "NYU" / "bathroom"
    room.mkdir(parents=True)
    Image.fromarray(np.full((4, 6, 3), 7, np.uint8)).save(room / "rgb_00045.jpg")
    depth = np.arange(24, dtype=np.uint16).reshape(4, 6) * 400
    Image.fromarray(depth).save(room / "sync_depth_00045.png")
    line = "NYU/bathroom/rgb_00045.jpg NYU/bathroom/sync_depth_00045.png\n"
    (tmp_path / "test.txt").write_text(line)
    source = sources.open_source("nyu", tmp_path, {}, 0)
    (picture,) = source.depth_pictures("test")
    assert picture.name == "bathroom_rgb_00045" and picture.rgb().shape == (4, 6, 3)
    assert np.allclose(picture.depth(), depth / 1000) and picture.depth().dtype == np.float32
    listed = [path.name for path in source.inputs("test")]
    assert listed == ["test.txt", "sync_depth_00045.png"]
    for text, told in ((line * 2, "test.txt:2: a second picture named bathroom_rgb_00045"),
                       ("a b c\n", "test.txt:1: expected 'picture depth'")):  # fmt: skip
        (tmp_path / "test.txt").write_text(text)
        with pytest.raises(UserError, match=told):
            source.depth_pictures("test")
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(room / "sync_depth_00045.png")
    with pytest.raises(UserError, match="expected a 16-bit grey picture of millimetres, got L"):
        picture.depth()


def test_photographs_are_cropped_at_the_centre(tmp_path):
    ramp = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    (tmp_path / "test.txt").write_text("a.png 3\n")
    (picture,) = sources.open_source("imagenet", tmp_path, {}, 0).labelled_pictures("test")
    assert (picture.name, picture.label) == ("a", 3)
    assert np.array_equal(picture.rgb(100, 60), ramp[20:80, 70:130])
    smaller = [picture.rgb(70, 60, how).astype(int) for how in ("bilinear", "bicubic")]
    assert 0 < np.abs(smaller[0] - smaller[1]).max() < 6


def test_counts_cut_lists(tmp_path):
    (tmp_path / "test.txt").write_text("1 one\n2 two\n3 three\n")
    source = sources.open_source("captions", tmp_path, {"test": 2}, 0)
    assert [caption.text for caption in source.captions("test")] == ["one", "two"]


def test_inputs_are_lists_and_labels(tmp_path):
    masks = tmp_path / "VOC2012" / "SegmentationClass"
    pictures = tmp_path / "VOC2012" / "JPEGImages"
    for path in (masks / "a.png", masks / "c.png", pictures / "a.jpg",
                 tmp_path / "arc_challenge_test.jsonl"):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    listed = tmp_path / "test.txt"
    listed.write_text("a\nb\nc\n")  # b has no mask, c is beyond the count

    def inputs(name):
        return sources.open_source(name, tmp_path, {"test": 2}, 0).inputs("test")

    assert inputs("voc") == [listed, masks / "a.png"]
    assert inputs("arc") == [listed, tmp_path / "arc_challenge_test.jsonl"]
    assert inputs("captions") == inputs("imagenet") == [listed]
    assert inputs("world") == []


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "test.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"test\.txt: expected text in UTF-8"):
        read_lines(path, "lines", "prepare_arc.py")
    (tmp_path / "arc_challenge_test.jsonl").write_text('[1]\n{"id": ["Q"]}\n')
    path.write_text("Q\n")
    with pytest.raises(UserError, match="question Q: not in the file"):
        sources.open_source("arc", tmp_path, {}, 0).questions("test")
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50), np.uint8)).save(picture)
    whole = picture.read_bytes()
    for damaged in (b"", b"nothing", whole[:300], whole[:50] + b"\xff" * 40 + whole[90:]):
        picture.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.png: not a readable picture"):
            read_picture(picture)
