"""The backbone of a DINOv2 in two halves, and Meta's files of it.

A head reads the tokens after some blocks. What is sent is the tokens after those of them that the
front half has, and after its own last block, from which the back half goes on::

    front   blocks 0 .. k        picture ─> tokens after the sent blocks, (B, layers, tokens, D)
    back    blocks k + 1 .. end  these ─> tokens after every block that the head reads ─> head
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

from dtufc.errors import UserError
from dtufc.machines.checkpoints import loading, open_weights
from dtufc.machines.dinov2.options import PATCH

HEAD_WIDTH = 64
"""Width of an attention head in all of Meta's models."""

Grid = tuple[int, int]
"""Rows and columns of patches."""


class MetaEmbeddings(Dinov2Embeddings):
    """Patch embedding whose positions are resized as Meta's code does it.

    Bicubic with the scale (new + 0.1) / old, from which the sampling places follow; transformers takes
    them from the sizes. On the native grid both are the identity.
    """

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        positions = self.position_embeddings  # (1, 1 + M * M, D)
        side = math.isqrt(positions.shape[1] - 1)
        grid = (height // PATCH, width // PATCH)
        if grid == (side, side):
            return positions
        table = positions[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
        scale = tuple((size + 0.1) / side for size in grid)
        table = nn.functional.interpolate(table, scale_factor=scale, mode="bicubic")
        if table.shape[2:] != grid:
            raise RuntimeError(f"positions resized to {tuple(table.shape[2:])}, not {grid}")
        table = table.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)  # (1, h * w, D)
        return torch.cat([positions[:, :1], table], dim=1)


def sent_blocks(read: Sequence[int], last: int) -> list[int]:
    """The blocks whose tokens are sent, in order, where the head reads those after ``read`` and the
    front half ends with block ``last``."""
    return sorted({block for block in read if block <= last} | {last})


class Front(nn.Module):
    """Pixels (B, 3, h, w), multiples of 14 -> tokens after the sent blocks,
    (B, layers, 1 + h * w / 196, D)."""

    def __init__(self, model: Dinov2Model, sent: Sequence[int]):
        super().__init__()
        embeddings = MetaEmbeddings(model.config)
        embeddings.load_state_dict(model.embeddings.state_dict(), assign=True)
        self.embeddings = embeddings
        self.layers = model.encoder.layer[: sent[-1] + 1]
        self.sent = sent

    def forward(self, x: Tensor) -> Tensor:
        x = self.embeddings(x)
        kept = []
        for block, layer in enumerate(self.layers):
            x = layer(x)
            if block in self.sent:
                kept.append(x)
        return torch.stack(kept, dim=1)


class Back(nn.Module):
    """What :class:`Front` gives, and the patches' grid -> what the head makes of it.

    Args:
        read: the blocks whose tokens the head reads, in order.
        head: ``head([tokens (B, 1 + h * w, D) after each of them], (h, w))``.
        normed: whether the head reads tokens after the model's last norm.
    """

    def __init__(
        self,
        model: Dinov2Model,
        sent: Sequence[int],
        read: Sequence[int],
        head: nn.Module,
        normed: bool,
    ):
        super().__init__()
        self.sent, self.read = sent, read
        self.layers = model.encoder.layer[sent[-1] + 1 :]
        self.norm = model.layernorm if normed else nn.Identity()
        self.head = head

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        kept = dict(zip(self.sent, x.unbind(1), strict=True))
        x = kept[self.sent[-1]]
        for block, layer in enumerate(self.layers, start=self.sent[-1] + 1):
            x = kept[block] = layer(x)
        return self.head([self.norm(kept[block]) for block in self.read], grid)


def read_config(weights: Mapping[str, Tensor], path: Path) -> Dinov2Config:
    """The architecture of Meta's checkpoint, from the shapes of its weights.

    Raises:
        UserError: it is none of a DINOv2 without registers.
    """
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    if not depth or "pos_embed" not in weights or "register_tokens" in weights:
        raise UserError(f"{path}: not Meta's weights of a DINOv2 without registers")
    positions, width = weights["pos_embed"].shape[1:]
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=width // HEAD_WIDTH,
        mlp_ratio=4,
        use_swiglu_ffn="blocks.0.mlp.w12.weight" in weights,
        image_size=PATCH * math.isqrt(positions - 1),
        patch_size=PATCH,
    )


def load_backbone(path: Path, known: Dinov2Config, blocks: range) -> Dinov2Model:
    """The model with the weights of some blocks; of Meta's file no others are read.

    The other blocks are there without weights, for the caller to drop; likewise the embedding where
    block 0 is not among them, and the norm where the last one is.

    Raises:
        UserError: the file lacks a weight, or is damaged.
    """
    if path.is_dir():
        with loading(path):
            return Dinov2Model.from_pretrained(path, dtype=torch.float32)
    stored = open_weights(path)
    with init_empty_weights():
        model = Dinov2Model(known)
    needed = [f"encoder.layer.{i}." for i in blocks]
    needed += ["embeddings."] if 0 in blocks else ["layernorm."]
    if len(blocks) == known.num_hidden_layers:
        needed += ["layernorm."]
    names = [name for name, _ in model.named_parameters() if name.startswith(tuple(needed))]
    try:
        state = {name: from_meta(stored, name) for name in names}
    except KeyError as error:
        raise UserError(f"{path}: lacks the weight {error}") from error
    with loading(path):
        model.load_state_dict(state, strict=False, assign=True)
    return model


RENAMED = (
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.", ""),
    ("encoder.layer.", "blocks."),
    ("layernorm.", "norm."),
    (".attention.o_proj.", ".attn.proj."),
    (".layer_scale1.lambda1", ".ls1.gamma"),
    (".layer_scale2.lambda1", ".ls2.gamma"),
    (".mlp.down_proj.", ".mlp.w3."),
)
JOINED = {"q_proj": ("attn.qkv", 0, 3), "k_proj": ("attn.qkv", 1, 3), "v_proj": ("attn.qkv", 2, 3),
          "gate_proj": ("mlp.w12", 0, 2), "up_proj": ("mlp.w12", 1, 2)}  # fmt: skip
"""What Meta's model computes with one matrix: its name, which part, of how many."""


def from_meta(stored: Mapping[str, Tensor], name: str) -> Tensor:
    """The weight that transformers calls ``name``, from Meta's checkpoint, float32."""
    for ours, theirs in RENAMED:
        name = name.replace(ours, theirs)
    parts = name.split(".")  # blocks, 3, attention, q_proj, weight
    if len(parts) < 2 or parts[-2] not in JOINED:
        return stored[name].float()
    joined, index, count = JOINED[parts[-2]]
    return stored[".".join([*parts[:2], joined, parts[-1]])].float().chunk(count)[index]


def load_head(head: nn.Module, path: Path, what: str, prefix: str = "decode_head.") -> None:
    """Read a head's weights: Meta's file, or the same names without their prefix.

    Args:
        what: the head, for the error.
        prefix: of the head's names in a file that may hold others too.

    Raises:
        UserError: it is damaged, or names or shapes differ.
    """
    stored = open_weights(path)
    prefixed = [name for name in stored if name.startswith(prefix)]
    state = {name.removeprefix(prefix): stored[name] for name in prefixed or stored}
    with loading(path, what):
        head.load_state_dict(state)
