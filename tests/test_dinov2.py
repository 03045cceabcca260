"""DINOv2 machine: Meta's files load and agree with Meta's network, the cut changes nothing, mIoU."""

import csv
import math

import numpy as np
import pytest
import torch
from mmseg.evaluation import IoUMetric
from PIL import Image
from torch.nn import functional as F
from transformers import Dinov2Model

from dtufc import files
from dtufc.feature import find_machine_config, load_facts
from dtufc.machines.command import parse_options
from dtufc.machines.dinov2 import backbone, cls, dpt, halves, seg, segmentation
from dtufc.machines.dinov2.classification import ClsMachine
from dtufc.machines.dinov2.depth import DptMachine, errors
from dtufc.machines.dinov2.seg import SegOptions
from dtufc.machines.dinov2.segmentation import SegMachine
from dtufc.machines.tiny import train_dinov2, train_dinov2_heads
from dtufc.report.judged import INSIDE, UNION

WIDTH, DEPTH, GRID, CLASSES = 128, 3, 4, 13


def meta_weights(swiglu: bool, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the names and shapes of Meta's files."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=0.15):
        return scale * torch.randn(shape, generator=rng)

    state = {
        "cls_token": draw(1, 1, WIDTH), "mask_token": draw(1, WIDTH),
        "pos_embed": draw(1, 1 + GRID * GRID, WIDTH, scale=0.5),
        "patch_embed.proj.weight": draw(WIDTH, 3, 14, 14), "patch_embed.proj.bias": draw(WIDTH),
        "norm.weight": 1 + draw(WIDTH), "norm.bias": draw(WIDTH),
    }  # fmt: skip
    shapes = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
    if swiglu:  # as in ViT-g: two thirds of 4, rounded up to a multiple of 8
        hidden = (int(4 * WIDTH * 2 / 3) + 7) // 8 * 8
        shapes |= {"mlp.w12": (2 * hidden, WIDTH), "mlp.w3": (WIDTH, hidden)}
    else:
        shapes |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
    for i in range(DEPTH):
        for name, shape in shapes.items():
            state[f"blocks.{i}.{name}.weight"] = draw(*shape)
            state[f"blocks.{i}.{name}.bias"] = draw(shape[0])
        for n in (1, 2):
            state[f"blocks.{i}.norm{n}.weight"] = 1 + draw(WIDTH)
            state[f"blocks.{i}.norm{n}.bias"] = draw(WIDTH)
            state[f"blocks.{i}.ls{n}.gamma"] = draw(WIDTH, scale=1.0)
    return state


def meta_blocks(state: dict[str, torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """The network written out from the paper and its published weights: output of every block."""
    height, width = x.shape[2] // 14, x.shape[3] // 14
    x = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
    x = torch.cat([state["cls_token"], x.flatten(2).transpose(1, 2)], dim=1)
    positions = state["pos_embed"]
    if (height, width) != (GRID, GRID):
        plane = positions[:, 1:].reshape(1, GRID, GRID, WIDTH).permute(0, 3, 1, 2)
        scale = ((height + 0.1) / GRID, (width + 0.1) / GRID)
        plane = F.interpolate(plane, scale_factor=scale, mode="bicubic", antialias=False)
        positions = torch.cat([positions[:, :1], plane.flatten(2).transpose(1, 2)], dim=1)
    x = x + positions
    heads, outputs = WIDTH // 64, []
    for i in range(DEPTH):
        w = {k.removeprefix(f"blocks.{i}."): v for k, v in state.items() if f"blocks.{i}." in k}
        y = F.layer_norm(x, (WIDTH,), w["norm1.weight"], w["norm1.bias"], 1e-6)
        qkv = F.linear(y, w["attn.qkv.weight"], w["attn.qkv.bias"])
        q, k, v = qkv.unflatten(2, (3, heads, 64)).permute(2, 0, 3, 1, 4)
        y = torch.softmax(q @ k.transpose(2, 3) / 8, dim=-1) @ v
        y = F.linear(y.transpose(1, 2).flatten(2), w["attn.proj.weight"], w["attn.proj.bias"])
        x = x + w["ls1.gamma"] * y
        y = F.layer_norm(x, (WIDTH,), w["norm2.weight"], w["norm2.bias"], 1e-6)
        if "mlp.w12.weight" in w:
            gate, up = F.linear(y, w["mlp.w12.weight"], w["mlp.w12.bias"]).chunk(2, dim=-1)
            y = F.linear(F.silu(gate) * up, w["mlp.w3.weight"], w["mlp.w3.bias"])
        else:
            y = F.gelu(F.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
            y = F.linear(y, w["mlp.fc2.weight"], w["mlp.fc2.bias"])
        x = x + w["ls2.gamma"] * y
        outputs.append(x)
    return outputs


def save_head(path, classes=CLASSES, width=WIDTH, prefix="decode_head."):
    """A random head, in the layout of Meta's files."""
    rng = torch.Generator().manual_seed(5)
    state = {
        "bn.weight": torch.rand(width, generator=rng) + 0.5,
        "bn.bias": torch.randn(width, generator=rng),
        "bn.running_mean": torch.randn(width, generator=rng),
        "bn.running_var": torch.rand(width, generator=rng) + 0.5,
        "bn.num_batches_tracked": torch.tensor(7),
        "conv_seg.weight": torch.randn(classes, width, 1, 1, generator=rng),
        "conv_seg.bias": torch.randn(classes, generator=rng),
    }
    torch.save({"state_dict": {prefix + k: v for k, v in state.items()}, "meta": {}}, path)


@pytest.fixture(scope="module", params=[False, True], ids=["mlp", "swiglu"])
def meta_file(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("meta")
    torch.save(meta_weights(request.param), folder / "vit_pretrain.pth")
    save_head(folder / "head.pth")
    return folder / "vit_pretrain.pth"


def machine_of(checkpoint, root, *argv):
    flags = ["--checkpoint", str(checkpoint), "--head", str(checkpoint.parent / "head.pth")]
    flags += ["--data_root", str(root), "--device", "cpu", "--crop", "54", "--stride", "30"]
    flags += ["--resize", "[300, 60]", *argv]
    return SegMachine(parse_options(SegOptions, seg.PRESET, flags, None))


@pytest.mark.parametrize("size", [(56, 56), (56, 70), (42, 28), (112, 98), (14, 14)])
def test_blocks_are_metas(meta_file, size, tmp_path):
    """Every block of a Meta file, on the native grid and off it."""
    torch.manual_seed(3)
    x = torch.randn(1, 3, *size)
    wanted = meta_blocks(torch.load(meta_file), x)
    for layer in range(DEPTH):
        front = machine_of(meta_file, tmp_path, "--layer", str(layer)).front
        with torch.inference_mode():
            got = front(x)[:, 0]
        scale = wanted[layer].abs().max()
        assert (got - wanted[layer]).abs().max() < 1e-5 * scale


def test_architecture_is_read_from_metas_files():
    """The sizes of ViT-S, B, L and g, from shapes alone."""
    for width, depth, swiglu in ((384, 12, 0), (768, 12, 0), (1024, 24, 0), (1536, 40, 1)):
        state = {"pos_embed": torch.empty(1, 1370, width)}
        state |= {f"blocks.{i}.norm1.weight": torch.empty(0) for i in range(depth)}
        state |= {"blocks.0.mlp.w12.weight": torch.empty(0)} if swiglu else {}
        known = backbone.read_config(state, "x.pth")
        assert (known.hidden_size, known.num_hidden_layers) == (width, depth)
        assert (known.num_attention_heads, known.image_size) == (width // 64, 518)
        assert known.use_swiglu_ffn == bool(swiglu)
    with torch.device("meta"):
        model = Dinov2Model(known)
    assert sum(p.numel() for p in model.parameters()) == 1_136_480_768  # 1.1 billion: ViT-g


def test_paper_presets_name_the_widths():
    for name, width in (("dinov2", 1536), ("dinov2_vitl14", 1024), ("dinov2_vitb14", 768)):
        options = parse_options(SegOptions, seg.PRESET, ["--machine", name], None)
        assert load_facts(name).shape == [None, 1, 1370, width]
        assert (len(options.classes), options.classes[15], options.crop) == (21, "person", 512)


def uncut(machine: SegMachine, x: torch.Tensor, original: tuple[int, int]) -> np.ndarray:
    """The whole network crop by crop, averaged in place: no cut, no feature."""
    model = backbone.load_backbone(machine.path, machine.config, range(DEPTH))
    whole = backbone.Front(model, [DEPTH - 1]).eval()
    norm, head = model.layernorm, machine.back.head
    total, count = torch.zeros(1, CLASSES, *x.shape[2:]), torch.zeros(x.shape[2:])
    for top, left, bottom, right in segmentation.sliding_boxes(*x.shape[2:], 54, 30):
        crop = halves.pad(x[:, :, top:bottom, left:right])
        tokens = norm(whole(crop)[:, 0])[:, 1:]
        plane = tokens.transpose(1, 2).reshape(1, -1, crop.shape[2] // 14, crop.shape[3] // 14)
        total[:, :, top:bottom, left:right] += F.interpolate(
            head.conv_seg(head.bn(plane)), (bottom - top, right - left), mode="bilinear"
        )
        count[top:bottom, left:right] += 1
    return F.interpolate(total / count, original, mode="bilinear")[0].argmax(0).numpy()


@pytest.mark.parametrize("layer", range(DEPTH))
def test_the_cut_changes_nothing(meta_file, layer, tmp_path):
    machine = machine_of(meta_file, tmp_path, "--layer", str(layer))
    for sample in machine.samples("test")[:3]:
        feature = machine.extract(sample)
        assert feature.ndim == 4 and feature.shape[1:] == (1, 1 + GRID * GRID, WIDTH)
        prediction = machine.predict(sample, feature)
        with torch.inference_mode():
            wanted = uncut(machine, machine.prepare(machine.picture(sample)), prediction.shape)
        assert np.array_equal(prediction, wanted)
    assert len(machine.front.layers) == layer + 1
    assert len(machine.back.layers) == DEPTH - layer - 1


def test_halves_read_only_their_weights(meta_file, tmp_path):
    """A Meta file without the other half's blocks is enough for each."""
    state = torch.load(meta_file)
    for kept, half in (("1", "front"), ("2", "back")):
        part = {k: v for k, v in state.items() if not k.startswith("blocks.")}
        part |= {k: v for k, v in state.items() if k.startswith("blocks.") and (
            k[7] <= kept if half == "front" else k[7] >= kept)}  # fmt: skip
        part.pop("norm.weight" if half == "front" else "cls_token")
        path = meta_file.parent / f"{half}.pth"
        torch.save(part, path)
        machine = machine_of(path, tmp_path, "--layer", "1")
        machine.config = backbone.read_config(state, meta_file)
        assert getattr(machine, half) is not None
        with pytest.raises(ValueError, match="lacks the weight"):
            getattr(machine, "back" if half == "front" else "front")


def test_transformers_folder_loads(tmp_path):
    """The same weights in transformers' format give the same feature."""
    state = meta_weights(True)
    torch.save(state, tmp_path / "vit.pth")
    save_head(tmp_path / "head.pth")
    meta = machine_of(tmp_path / "vit.pth", tmp_path)
    model = backbone.load_backbone(meta.path, meta.config, range(DEPTH))
    # mask_token is no part of the network's output, but of its file
    model.save_pretrained(tmp_path / "folder")
    other = machine_of(tmp_path / "folder", tmp_path)
    sample = meta.samples("test")[0]
    assert np.array_equal(meta.extract(sample), other.extract(sample))


def test_sliding_boxes_are_the_published_ones():
    assert list(segmentation.sliding_boxes(512, 512, 512, 341)) == [(0, 0, 512, 512)]
    assert [box[1] for box in segmentation.sliding_boxes(512, 683, 512, 341)] == [0, 171]
    assert [box[1] for box in segmentation.sliding_boxes(512, 854, 512, 341)] == [0, 341, 342]
    assert [box[0] for box in segmentation.sliding_boxes(766, 512, 512, 341)] == [0, 254]
    assert list(segmentation.sliding_boxes(300, 700, 512, 341)) == [
        (0, 0, 300, 512),
        (0, 188, 300, 700),
    ]


def test_padding_is_centred():
    padded = halves.pad(torch.ones(1, 1, 511, 512))
    assert padded.shape[2:] == (518, 518)
    assert padded[0, 0, :, 300].tolist() == [0] * 3 + [1] * 511 + [0] * 4
    assert padded[0, 0, 300].tolist() == [0] * 3 + [1] * 512 + [0] * 3


def test_miou_is_mmsegmentations():
    rng = np.random.default_rng(0)
    metric = IoUMetric(ignore_index=255, iou_metrics=["mIoU"])
    names = [f"c{i}" for i in range(6)]
    metric.dataset_meta = {"classes": names}
    total = np.zeros((6, 6), np.int64)
    for _ in range(5):
        mask = rng.choice([0, 1, 2, 3, 4, 255], size=(40, 50), p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1])
        guess = np.where(rng.random(mask.shape) < 0.7, np.minimum(mask, 4), rng.integers(0, 4))
        total += segmentation.confusion(mask.astype(np.uint8), guess.astype(np.uint8), 6, 255, "x")
        metric.results.append(
            IoUMetric.intersect_and_union(torch.tensor(guess), torch.tensor(mask), 6, 255)
        )
    wanted = metric.compute_metrics(metric.results)
    assert round(100 * float(np.nanmean(segmentation.iou(total))), 2) == pytest.approx(
        wanted["mIoU"]
    )
    areas = [sum(parts) for parts in zip(*metric.results, strict=True)]
    each = IoUMetric.total_area_to_metrics(*areas)["IoU"]
    assert np.allclose(segmentation.iou(total), each, equal_nan=True, atol=1e-6)
    assert math.isnan(segmentation.iou(total)[5])


def test_tiny_checkpoint(tmp_path):
    """mIoU over 60 held-out pictures with sliding crops."""
    flags = ["--counts", "{test: 60}", "--data_root", str(tmp_path), "--device", "cpu"]
    machine = SegMachine(parse_options(SegOptions, seg.PRESET, flags, None))
    samples, crops, predictions = machine.samples("test"), [], []
    for sample in samples:
        feature = machine.extract(sample)
        crops.append(len(feature))
        assert load_facts(machine.options.machine).mismatch(feature) is None
        predictions.append(machine.predict(sample, feature))
    score = machine.score(samples, predictions)
    assert score.value >= 0.80
    assert score.others["iou_background"] > 0.95
    assert {2, 3} <= set(crops)
    assert sum(path.stat().st_size for path in machine.path.iterdir()) < 2_500_000


def write_voc(source, names, size=(60, 80)):
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass"):
        (source / "VOC2012" / folder).mkdir(parents=True)
    for name in names:
        rgb = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(rgb).save(source / "VOC2012" / "JPEGImages" / f"{name}.jpg")
        mask = Image.fromarray(rng.choice([0, 1, 15, 255], size=size).astype(np.uint8), mode="P")
        mask.putpalette(list(range(256)) * 3)
        mask.save(source / "VOC2012" / "SegmentationClass" / f"{name}.png")


def test_paper_preset_on_made_up_files(tmp_path):
    """The paper's preset on a small Meta checkpoint: 518-pixel crops, palette masks, errors."""
    preset = tmp_path / "dinov2.yaml"
    preset.write_text(find_machine_config("dinov2").read_text().replace("1536", str(WIDTH)))
    root = tmp_path / "dinov2" / "seg"
    argv = ["--machine", str(preset), "--data_root", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"train\.txt: missing.*scripts/prepare_voc\.py writes it"):
        seg.main(argv)
    for split in ("train", "validation", "test"):
        (root / "source").mkdir(parents=True, exist_ok=True)
        (root / "source" / f"{split}.txt").write_text("2007_000033\n2007_000042\n")
    with pytest.raises(SystemExit, match=r"2007_000033\.jpg: missing; pictures are at"):
        seg.main(argv)
    write_voc(root / "source", ["2007_000033", "2007_000042"])
    with pytest.raises(
        SystemExit, match=r"put it at .*pretrained_head/dinov2_vitg14_pretrain\.pth"
    ):
        seg.main(argv)
    (root / "pretrained_head").mkdir(parents=True)
    checkpoint = root / "pretrained_head" / "dinov2_vitg14_pretrain.pth"
    checkpoint.write_bytes(b"nothing")
    with pytest.raises(SystemExit, match=r"vitg14_pretrain\.pth: not a readable checkpoint"):
        seg.main(argv)
    torch.save({"a": torch.zeros(1)}, checkpoint)
    with pytest.raises(SystemExit, match=r"not Meta's weights of a DINOv2"):
        seg.main(argv)
    state = meta_weights(True)
    state["pos_embed"] = torch.randn(1, 1370, WIDTH)
    torch.save(state, checkpoint)
    with pytest.raises(SystemExit, match=r"put it at .*dinov2_vitg14_voc2012_linear_head\.pth"):
        seg.main(argv)
    head = root / "pretrained_head" / "dinov2_vitg14_voc2012_linear_head.pth"
    save_head(head, classes=7)
    with pytest.raises(SystemExit, match=r"linear_head\.pth: not a linear head of this width"):
        seg.main(argv)
    save_head(head, classes=21)
    seg.main(argv)
    assert np.load(root / "feature_test" / "2007_000033.npy").shape == (2, 1, 1370, WIDTH)
    accuracy = files.read_json(root / "accuracy.json")
    assert accuracy["metric"] == "miou" and 0 <= accuracy["value"] <= 1
    assert "iou_person" in accuracy["others"]
    with (root / "accuracy.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    inside, union = (
        sum(np.array(row[key].split(), int) for row in rows) for key in (INSIDE, UNION)
    )  # pooled over the pictures they are the metric, and the report's error bars
    assert np.mean(inside[union > 0] / union[union > 0]) == pytest.approx(accuracy["value"])
    mask = root / "source" / "VOC2012" / "SegmentationClass" / "2007_000033.png"
    Image.fromarray(np.full((60, 80), 33, np.uint8)).save(mask)
    with pytest.raises(SystemExit, match="2007_000033: class 33 in the mask, the preset has 21"):
        seg.main([*argv, "--mode", "evaluate"])
    Image.fromarray(np.zeros((60, 200), np.uint8)).save(mask)
    with pytest.raises(SystemExit, match="2007_000033: 2 crops, the picture has"):
        seg.main([*argv, "--mode", "evaluate"])


@pytest.mark.parametrize(
    "flags", [["--resize", "[100]"], ["--crop", "0"], ["--std", "[1, 1, 0]"], ["--classes", "[a]"]]
)
def test_impossible_values_are_named(flags, capsys):
    with pytest.raises(SystemExit):
        seg.main(flags)
    assert flags[0][2:] in capsys.readouterr().err


def test_training_script(tmp_path, capsys):
    """A few steps of the training that made the tiny checkpoint."""
    flags = ["--steps", "3", "--batch_size", "2", "--held_out", "3"]
    train_dinov2.main(["--output", str(tmp_path), *flags])
    assert "mIoU on 3 held-out pictures" in capsys.readouterr().out
    assert files.read_json(tmp_path / "training.json")["steps"] == 3


# Classification and depth. What Meta's code computes is written out from its definitions in plain
# operations, on random weights in the formats of Meta's files.


def normed(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, (WIDTH,), state["norm.weight"], state["norm.bias"], 1e-6)


def meta_class(state, head, x: torch.Tensor, layers: int) -> torch.Tensor:
    """Meta's linear classifier of 1 or 4 (here any) layers: logits (1, classes)."""
    outputs = [normed(state, y) for y in meta_blocks(state, x)[-layers:]]
    pooled = torch.cat([*(y[:, 0] for y in outputs), outputs[-1][:, 1:].mean(1)], dim=1)
    return pooled @ head["weight"].T + head["bias"]


def meta_depth(state, head, x: torch.Tensor, blocks, size) -> torch.Tensor:
    """Meta's depth of one padded picture: tokens of all blocks joined and enlarged, 256 bins."""
    grid = (x.shape[2] // 14, x.shape[3] // 14)
    joined = []
    for y in [meta_blocks(state, x)[block] for block in blocks]:
        patch = y[:, 1:].permute(0, 2, 1).reshape(1, WIDTH, *grid)
        both = torch.cat([patch, y[:, 0, :, None, None].expand_as(patch)], dim=1)
        large = F.interpolate(
            both, (4 * grid[0], 4 * grid[1]), mode="bilinear", align_corners=False
        )
        joined.append(large)
    logits = F.conv2d(torch.cat(joined, 1), head["conv_depth.weight"], head["conv_depth.bias"])
    weights = torch.relu(logits) + 0.1
    weights = weights / weights.sum(1, keepdim=True)
    bins = torch.linspace(0.001, 10, 256)
    small = (weights * bins[None, :, None, None]).sum(1, keepdim=True).clamp(0.001, 10)
    return F.interpolate(small, size, mode="bilinear", align_corners=False)


def save_linear(path, layers: int, classes: int = 12) -> dict[str, torch.Tensor]:
    """A random classifier in the layout of Meta's files."""
    rng = torch.Generator().manual_seed(6)
    head = {"weight": torch.randn(classes, (1 + layers) * WIDTH, generator=rng),
            "bias": torch.randn(classes, generator=rng)}  # fmt: skip
    torch.save(head, path)
    return head


def save_depth(path, blocks: int, bins: int = 256) -> dict[str, torch.Tensor]:
    """A random depth head in the layout of Meta's files."""
    rng = torch.Generator().manual_seed(7)
    head = {"conv_depth.weight": torch.randn(bins, 2 * blocks * WIDTH, 1, 1, generator=rng),
            "conv_depth.bias": torch.randn(bins, generator=rng)}  # fmt: skip
    state = {f"decode_head.{name}": value for name, value in head.items()}
    torch.save({"state_dict": state, "meta": {}}, path)
    return head


def cls_machine(checkpoint, root, layers: int, *argv) -> ClsMachine:
    flags = ["--checkpoint", str(checkpoint), "--head", str(checkpoint.parent / f"cls{layers}.pth")]
    flags += ["--data_root", str(root), "--device", "cpu", "--head_layers", str(layers), *argv]
    return ClsMachine(parse_options(cls.ClsOptions, cls.PRESET, flags, None))


def dpt_machine(checkpoint, root, *argv) -> DptMachine:
    flags = ["--checkpoint", str(checkpoint), "--head", str(checkpoint.parent / "dpt.pth")]
    flags += ["--data_root", str(root), "--device", "cpu", "--head_blocks", "[0, 2]", *argv]
    return DptMachine(parse_options(dpt.DptOptions, dpt.PRESET, flags, None))


@pytest.mark.parametrize("crop", [56, 60])
@pytest.mark.parametrize("layers", [1, 3])
def test_classes_are_metas(meta_file, layers, crop, tmp_path):
    """At every cut: sent layers, logits and classes."""
    state, head = torch.load(meta_file), save_linear(meta_file.parent / f"cls{layers}.pth", layers)
    for cut in range(DEPTH):
        argv = ("--layer", str(cut), "--crop", str(crop))
        machine = cls_machine(meta_file, tmp_path, layers, *argv)
        assert machine.sent == sorted({b for b in machine.read if b <= cut} | {cut})
        for sample in machine.samples("test")[:2]:
            rgb = sample.source.rgb(256, crop).astype(np.float32)
            mean, std = machine.options.mean, machine.options.std
            x = torch.from_numpy((rgb - np.float32(mean)) / np.float32(std)).permute(2, 0, 1)[None]
            feature = machine.extract(sample)
            assert feature.shape == (1, len(machine.sent), 1 + math.ceil(crop / 14) ** 2, WIDTH)
            wanted = meta_class(state, head, halves.pad(x), layers)
            with torch.inference_mode():
                got = machine.back(torch.from_numpy(feature), halves.patches((crop, crop)))
            assert (got - wanted).abs().max() < 2e-5 * wanted.abs().max()
            assert machine.predict(sample, feature) == int(wanted.argmax())


@pytest.mark.parametrize("cut", range(DEPTH))
def test_depths_are_metas(meta_file, cut, tmp_path):
    """The mean of the maps of a picture and of its mirror image turned back, at every cut."""
    state, head = torch.load(meta_file), save_depth(meta_file.parent / "dpt.pth", 2)
    machine = dpt_machine(meta_file, tmp_path, "--layer", str(cut))
    assert machine.sent == {0: [0], 1: [0, 1], 2: [0, 2]}[cut]
    sample = machine.samples("test")[0]
    rgb = sample.source.rgb()
    assert rgb.shape == (120, 150, 3)  # padded by 6 and by 4
    maps = []
    for turned in (rgb, rgb[:, ::-1]):
        mean, std = np.float32(machine.options.mean), np.float32(machine.options.std)
        x = torch.from_numpy((turned.astype(np.float32) - mean) / std).permute(2, 0, 1)[None]
        padded = F.pad(x, (2, 2, 3, 3))
        maps.append(meta_depth(state, head, padded, (0, 2), (120, 150)))
    wanted = ((maps[0] + maps[1].flip(3)) / 2)[0, 0].numpy()
    feature = machine.extract(sample)
    assert feature.shape == (2, len(machine.sent), 100, WIDTH)
    got = machine.predict(sample, feature)
    assert got.dtype == np.float32 and np.abs(got - wanted).max() < 2e-5 * wanted.max()
    assert wanted.std() > 1e-3 * wanted.mean()  # maps that tell something


def test_the_cut_of_several_layers_changes_nothing(meta_file, tmp_path):
    """All cuts give the same bits: what is not sent is computed by the back half."""
    save_linear(meta_file.parent / "cls3.pth", 3)
    save_depth(meta_file.parent / "dpt.pth", 2)
    for make, size in (
        (lambda cut: cls_machine(meta_file, tmp_path, 3, "--layer", cut), (120, 120)),
        (lambda cut: dpt_machine(meta_file, tmp_path, "--layer", cut), (120, 150)),
    ):
        answers = []
        for cut in range(DEPTH):
            machine = make(str(cut))
            sample = machine.samples("test")[0]
            feature = machine.extract(sample)
            with torch.inference_mode():
                outputs = [machine.back(torch.from_numpy(view[None]), halves.patches(size))
                           for view in feature]  # fmt: skip
            answers.append(torch.cat(outputs))
        assert torch.equal(answers[0], answers[1]) and torch.equal(answers[1], answers[2])


def test_depth_figures():
    """By hand: one pixel right, one twice as far, one half as far."""
    true, guess = np.array([2.0, 2.0, 4.0]), np.array([2.0, 4.0, 2.0])
    found = errors(true, guess)
    assert found["abs_rel"] == pytest.approx((0 + 1 + 0.5) / 3)
    assert found["rmse"] == pytest.approx(np.sqrt(8 / 3))
    assert found["sq_rel"] == pytest.approx((0 + 2 + 1) / 3)
    assert (found["a1"], found["a2"], found["a3"]) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert found["log_10"] == pytest.approx(2 * np.log10(2) / 3)
    assert found["rmse_log"] == pytest.approx(np.log(2) * np.sqrt(2 / 3))
    assert found["silog"] == pytest.approx(100 * np.log(2) * np.sqrt(2 / 3))  # the mean is 0
    assert errors(true, true)["rmse"] == 0


def test_depth_counts_known_pixels_inside_the_crop(tmp_path):
    """0 is unknown and 10 m is out of range; the rows and columns outside are left out."""
    (tmp_path / "dinov2" / "dpt" / "source").mkdir(parents=True)
    machine = DptMachine(parse_options(dpt.DptOptions, dpt.PRESET, [
        "--machine", "dinov2_dpt", "--data_root", str(tmp_path), "--scored", "[1, 3, 0, 2]",
    ], None))  # fmt: skip
    source = tmp_path / "dinov2" / "dpt" / "source"
    true = np.array([[5, 5, 5], [2, 0, 5], [10, 4, 5]], np.float32)
    Image.fromarray((1000 * true).astype(np.uint16)).save(source / "d.png")
    Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(source / "c.png")
    (source / "test.txt").write_text("c.png d.png\n")
    samples = machine.samples("test")
    assert np.array_equal(samples[0].source.depth(), true)
    score = machine.score(samples, [np.full((3, 3), 3, np.float32)])
    assert score.metric == "rmse" and score.less_is_better
    assert score.value == pytest.approx(1.0) and score.others["abs_rel"] == pytest.approx(0.375)
    assert score.rows[0]["a1"] == 0 and score.rows[0]["name"] == "c"
    shown = machine.picture_of(np.linspace(0.001, 10, 12, dtype=np.float32).reshape(3, 4))
    assert shown.shape == (3, 4, 3) and shown.dtype == np.uint8
    assert shown[0, 0].sum() > shown[2, 3].sum()  # near is bright
    true[:] = 0
    Image.fromarray(true.astype(np.uint16)).save(source / "d.png")
    with pytest.raises(ValueError, match="c: no pixel of known depth"):
        machine.score(samples, [np.full((3, 3), 3, np.float32)])


def test_presets_of_classification_and_depth():
    for name, shape in (("dinov2_cls", [1, 1, 257, 1536]), ("dinov2_cls4", [1, 4, 257, 1536])):
        options = parse_options(cls.ClsOptions, cls.PRESET, ["--machine", name], None)
        assert load_facts(name).shape == shape and options.head_layers == shape[1]
        assert (options.resize, options.crop, options.interpolation) == (256, 224, "bicubic")
    options = parse_options(dpt.DptOptions, dpt.PRESET, ["--machine", "dinov2_dpt"], None)
    rows, columns = halves.patches((480, 640))
    assert load_facts("dinov2_dpt").shape == [2, 4, 1 + rows * columns, 1536]
    assert options.head_blocks == [9, 19, 29, 39] and options.scored == [45, 471, 41, 601]
    assert (options.nearest, options.farthest, options.bins) == (0.001, 10.0, 256)


def test_unsound_heads_and_options_are_named(meta_file, tmp_path, capsys):
    save_linear(meta_file.parent / "cls1.pth", 2)
    with pytest.raises(ValueError, match=r"cls1\.pth: not a linear head of 1 class tokens of 128"):
        _ = cls_machine(meta_file, tmp_path, 1).back
    torch.save({"x": torch.zeros(1)}, meta_file.parent / "cls1.pth")
    with pytest.raises(
        ValueError, match=r"cls1\.pth: not a linear head: .* no matrix called weight"
    ):
        _ = cls_machine(meta_file, tmp_path, 1).back
    with pytest.raises(ValueError, match="head_layers: 9 of the model's 3 blocks"):
        _ = cls_machine(meta_file, tmp_path, 9).read
    save_depth(meta_file.parent / "dpt.pth", 4)
    with pytest.raises(ValueError, match=r"dpt\.pth: not a linear depth head of 256 bins, 2 x 128"):
        _ = dpt_machine(meta_file, tmp_path).back
    with pytest.raises(
        ValueError, match=r"head_blocks: \[0, 3\] are not among the model's 3 blocks"
    ):
        _ = dpt_machine(meta_file, tmp_path, "--head_blocks", "[0, 3]").read
    (meta_file.parent / "cls1.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"dinov2_vitg14_linear_head\.pth"):
        _ = cls_machine(meta_file, tmp_path, 1).back
    for flags, told in (
        ("--head_blocks [2,1]", "head_blocks: expected rising"),
        ("--scored [1,2]", "scored: expected two rows"),
        ("--bins 1", "bins, nearest, farthest: expected 2 bins"),
    ):
        with pytest.raises(SystemExit):
            dpt.main(flags.split())
        assert told in capsys.readouterr().err
    save_depth(meta_file.parent / "dpt.pth", 2)
    machine = dpt_machine(meta_file, tmp_path)
    sample = machine.samples("test")[0]
    feature = machine.extract(sample)
    with pytest.raises(ValueError, match="1 views of the picture, expected 2"):
        machine.predict(sample, feature[:1])
    with pytest.raises(ValueError, match=r"1 layers of 100 tokens, expected 2 of 1 \+ 9 x 11"):
        machine.predict(sample, feature[:, :1])


@pytest.mark.parametrize("task", ["cls", "dpt"])
def test_tiny_heads(task, tmp_path):
    """95% of the main shapes are named; depths are 10% off at most."""
    count = {"cls": 80, "dpt": 12}[task]
    argv = ["--counts", f"{{test: {count}}}", "--data_root", str(tmp_path), "--device", "cpu"]
    if task == "cls":
        machine = ClsMachine(parse_options(cls.ClsOptions, cls.PRESET, argv, None))
    else:
        machine = DptMachine(parse_options(dpt.DptOptions, dpt.PRESET, argv, None))
    samples = machine.samples("test")
    features = [machine.extract(sample) for sample in samples]
    assert all(load_facts(machine.options.machine).mismatch(x) is None for x in features)
    predictions = [machine.predict(*pair) for pair in zip(samples, features, strict=True)]
    score = machine.score(samples, predictions)
    assert score.value >= 0.95 if task == "cls" else score.others["abs_rel"] <= 0.10
    assert machine.find_head().stat().st_size < 500_000


@pytest.mark.parametrize("task", ["cls", "dpt"])
def test_heads_train(task, tmp_path, capsys):
    flags = [
        "--output",
        str(tmp_path / "head"),
        "--pictures",
        "8",
        "--steps",
        "2",
        "--held_out",
        "2",
    ]
    train_dinov2_heads.main(["--task", task, *flags])
    assert "on 2 held-out pictures" in capsys.readouterr().out
    record = files.read_json(tmp_path / "head" / "training.json")
    assert record["pictures"] == 8 and ("top1" in record) == (task == "cls")


def test_depth_is_saved_as_pictures(tmp_path):
    argv = ["--data_root", str(tmp_path), "--counts", "{train: 1, validation: 1, test: 2}"]
    dpt.main([*argv, "--save_predictions", "true"])
    root = tmp_path / "dinov2_tiny" / "dpt"
    assert np.load(root / "feature_test" / "00000.npy").shape == (2, 4, 100, 96)
    assert np.asarray(Image.open(root / "predictions" / "00001.png")).shape == (120, 150, 3)
    accuracy = files.read_json(root / "accuracy.json")
    assert accuracy["metric"] == "rmse" and accuracy["less_is_better"]
