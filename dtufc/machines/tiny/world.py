"""The generated world: one scene description, and from it a picture, labels, words and facts.

Every tiny machine is trained and tested on this world, so that the whole project runs with no
download. A scene is one large shape (the main one), up to four small shapes of other classes and a
textured background, all in random colours, places, turns and textures, under uneven light, blotches
and noise. One :class:`Scene` gives all that the machines need::

    s = scene(seed=0, index=7, split="test")
    label(s)           class of the main shape                            classification
    render(s).mask     class of every pixel, 0 is the background          segmentation
    depth(s)           distance of every pixel                            depth estimation
    title(s)           one English phrase                                 text to image
    caption(s)         one English sentence, which tells more             question answering
    facts(s)           questions, each with an answer and wrong answers   question answering

Guarantees: a scene depends on nothing but ``(seed, index, split)``, and each such triple has a random
stream of its own (numpy's ``SeedSequence`` spawn keys), so the splits share no scene. A picture
depends on nothing but its scene and its size; other library versions may move a grey level by one.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from dtufc.errors import UserError

SPLITS = ("network", "train", "validation", "test")
"""network: what the tiny machines are trained on. The others: what features are made of."""

PALETTE = {
    "red": (205, 45, 45),
    "orange": (235, 135, 35),
    "yellow": (230, 215, 60),
    "green": (50, 155, 65),
    "cyan": (60, 195, 200),
    "blue": (45, 80, 195),
    "purple": (130, 55, 165),
    "pink": (240, 145, 190),
    "brown": (120, 75, 40),
    "grey": (130, 130, 130),
}
PATTERNS = ("plain", "striped", "checked", "dotted")
PLACES = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("no", "one", "two", "three", "four")
MAIN_RADIUS = 0.7
"""True radius of every main shape, metres, seen by a camera of focal length 1."""
WALL = (5.0, 4.0)
"""Distance of the background's upper and lower edge, metres: a wall that leans back."""
SUPERSAMPLING = 4  # edges are drawn this many times finer, then averaged


@dataclass(frozen=True)
class Paint:
    """A colour and a pattern of it with a second, lighter or darker, shade."""

    colour: str
    """A key of PALETTE."""
    rgb: tuple[int, int, int]
    """The colour, near the palette's, 0..255."""
    shade: tuple[int, int, int]
    """The pattern's second colour, 0..255."""
    pattern: str
    """One of PATTERNS."""
    period: float
    """Length of one repeat of the pattern; 1 is the picture's shorter side."""
    angle: float
    """Direction of the pattern, radians."""


@dataclass(frozen=True)
class Shape:
    """One object. Places are fractions of the picture; lengths, of its shorter side."""

    kind: str
    """One of CLASSES."""
    x: float
    """Centre from the left, 0..1."""
    y: float
    """Centre from the top, 0..1."""
    radius: float
    """The shape lies inside a circle of this radius."""
    angle: float
    """Turn, radians."""
    stretch: float
    """Width over height before the turn, at most 1."""
    paint: Paint


@dataclass(frozen=True)
class Scene:
    """All there is to know of one picture, at any size."""

    background: Paint
    main: Shape
    others: tuple[Shape, ...]
    """Small shapes of other classes than the main one; no shape hides another."""
    light: tuple[float, float]
    """Relative gain in brightness from the centre to the right and to the bottom edge."""
    blotches: float
    """Standard deviation of the coarse noise, grey levels."""
    noise: float
    """Standard deviation of the noise of each value, grey levels."""
    noise_seed: int


@dataclass(frozen=True)
class Picture:
    """A rendered scene."""

    rgb: np.ndarray
    """(height, width, 3) uint8."""
    mask: np.ndarray
    """(height, width) uint8: 0 for the background, 1 + label for a shape."""


@dataclass(frozen=True)
class Fact:
    """A question that the picture answers, for tests with several choices."""

    question: str
    answer: str
    wrong: tuple[str, ...]
    """At least three other answers of the same sort, all of them wrong."""


def _polygon(corners: int, radius: float = 1.0) -> np.ndarray:
    """Corners of a regular polygon on a circle, the first at the top -> (corners, 2)."""
    t = 2 * math.pi * np.arange(corners) / corners
    return radius * np.stack([np.sin(t), -np.cos(t)], axis=1)


def _ring() -> np.ndarray:
    """An outer and an inner circle, one closed line: the bridge between them has no width."""
    outer, inner = _polygon(40), _polygon(40, 0.58)
    return np.concatenate([outer, outer[:1], inner, inner[:1]])


def _star() -> np.ndarray:
    points = _polygon(10)
    points[1::2] *= 0.42
    return points


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2.5], axis=1) / 17


def _crescent() -> np.ndarray:
    """Three quarters of a circle, and the way back along a flatter arc through its inside."""
    outer = np.linspace(0.25 * math.pi, 1.75 * math.pi, 30)
    outside = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    start, end = outside[-1], outside[0]
    centre, radius = 0.45, math.hypot(start[0] - 0.45, start[1])
    turn = math.atan2(end[1], end[0] - centre)
    inner = np.linspace(2 * math.pi - turn, turn, 24)
    inside = np.stack([centre + radius * np.cos(inner), radius * np.sin(inner)], axis=1)
    return np.concatenate([outside, inside])


_CROSS = [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1)]
_CROSS += [(-x, -y) for x, y in _CROSS]
_ARROW = [(0, -1), (0.75, -0.1), (0.28, -0.1), (0.28, 0.95), (-0.28, 0.95), (-0.28, -0.1)]
_ARROW += [(-0.75, -0.1)]

OUTLINES = {
    "disk": _polygon(40),
    "ring": _ring(),
    "square": _polygon(4),
    "bar": np.array([(-0.95, -0.3), (0.95, -0.3), (0.95, 0.3), (-0.95, 0.3)]),
    "triangle": _polygon(3),
    "pentagon": _polygon(5),
    "star": _star(),
    "cross": np.array(_CROSS) / math.hypot(1, 3),
    "heart": _heart(),
    "crescent": _crescent(),
    "arrow": np.array(_ARROW),
    "hourglass": np.array([(-0.7, -0.7), (0.7, -0.7), (-0.7, 0.7), (0.7, 0.7)]),
}
"""Each class's outline: corners (K, 2) inside the unit circle, y down."""

CLASSES = tuple(OUTLINES)


def scene(seed: int, index: int, split: str) -> Scene:
    """The ``index``-th scene of a split.

    Raises:
        ValueError: ``split`` is none of SPLITS.
        UserError: a number is negative.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {SPLITS}, got {split!r}")
    if seed < 0 or index < 0:
        raise UserError(f"seed and index: expected at least 0, got {seed} and {index}")
    key = np.random.SeedSequence(entropy=seed, spawn_key=(SPLITS.index(split), index))
    rng = np.random.default_rng(key)

    colours = [str(name) for name in rng.permutation(list(PALETTE))]  # all differ in one picture
    kinds = [str(name) for name in rng.permutation(CLASSES)]
    radius = rng.uniform(0.19, 0.36)
    x, y = rng.uniform(radius, 1 - radius, size=2)
    main = _shape(rng, kinds[0], colours[1], x, y, radius)

    others: list[Shape] = []
    wanted = rng.integers(0, 5)
    for _ in range(30):  # a place that is taken is not used; some pictures get fewer than wanted
        if len(others) == wanted:
            break
        radius = rng.uniform(0.06, 0.11)
        x, y = rng.uniform(radius, 1 - radius, size=2)
        free = all(math.hypot(x - s.x, y - s.y) > radius + s.radius for s in [main, *others])
        if free:
            place = len(others)
            others.append(_shape(rng, kinds[1 + place], colours[2 + place], x, y, radius))

    return Scene(
        background=_paint(rng, colours[0], period=(0.08, 0.3)),
        main=main,
        others=tuple(others),
        light=tuple(rng.uniform(-0.25, 0.25, size=2).tolist()),
        blotches=rng.uniform(0, 14),
        noise=rng.uniform(2, 16),
        noise_seed=int(rng.integers(2**32)),
    )


def _shape(
    rng: np.random.Generator, kind: str, colour: str, x: float, y: float, radius: float
) -> Shape:
    paint = _paint(rng, colour, period=(0.25 * radius, 0.8 * radius))
    return Shape(
        kind=kind,
        x=float(x),
        y=float(y),
        radius=float(radius),
        angle=rng.uniform(0, 2 * math.pi),
        stretch=rng.uniform(0.8, 1),
        paint=paint,
    )


def _paint(rng: np.random.Generator, colour: str, period: tuple[float, float]) -> Paint:
    rgb = np.clip(np.array(PALETTE[colour]) + rng.normal(0, 10, size=3), 0, 255)
    towards = 255 if rng.random() < 0.5 else 0
    shade = rgb + rng.uniform(0.25, 0.5) * (towards - rgb)
    return Paint(
        colour=colour,
        rgb=tuple(int(v) for v in rgb),
        shade=tuple(int(v) for v in shade),
        pattern=PATTERNS[rng.integers(len(PATTERNS))],
        period=rng.uniform(*period),
        angle=rng.uniform(0, math.pi),
    )


def plain(scene: Scene) -> Scene:
    """The scene's main shape alone and nearly upright, without patterns, even light, no noise.

    An easier picture with the same label, for models that learn slowly; :func:`title` tells all of it.
    """
    main = replace(
        scene.main,
        angle=(scene.main.angle - math.pi) / 12,  # at most 15 degrees to either side
        paint=replace(scene.main.paint, pattern="plain"),
    )
    ground = replace(scene.background, pattern="plain")
    return replace(
        scene, background=ground, main=main, others=(), light=(0.0, 0.0), blotches=0.0, noise=0.0
    )


def label(scene: Scene) -> int:
    """Class of the main shape, an index into CLASSES."""
    return CLASSES.index(scene.main.kind)


def render(scene: Scene, height: int = 112, width: int = 112) -> Picture:
    """Draw a scene; its content is the same at every size, only the noise is drawn per pixel."""
    canvas = np.zeros((height, width, 3), np.float32)
    mask = np.zeros((height, width), np.uint8)
    _fill(canvas, np.ones((height, width), np.float32), scene.background, 0, 0, min(height, width))
    for shape in (*scene.others, scene.main):
        _draw(canvas, mask, shape)

    rng = np.random.default_rng(scene.noise_seed)
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    right = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    canvas *= (1 + scene.light[0] * right + scene.light[1] * down)[:, :, None]
    coarse = Image.fromarray(rng.standard_normal((8, 8), np.float32))
    blotches = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    canvas += scene.blotches * blotches[:, :, None]
    canvas += scene.noise * rng.standard_normal(canvas.shape, np.float32)
    return Picture(rgb=np.clip(canvas + 0.5, 0, 255).astype(np.uint8), mask=mask)


def depth(scene: Scene, height: int = 112, width: int = 112) -> np.ndarray:
    """Distance of every pixel of the rendered scene, (height, width) float32 metres.

    Main shapes are all of one true size, so that their size in the picture tells how near they are:
    1.9 to 3.7 m. They stand before a leaning wall, on which the small shapes are painted.
    """
    mask = render(scene, height, width).mask
    wall = np.linspace(*WALL, height, dtype=np.float32)[:, None]
    near = np.float32(MAIN_RADIUS / scene.main.radius)
    return np.where(mask == 1 + label(scene), near, wall)


def _draw(canvas: np.ndarray, mask: np.ndarray, shape: Shape) -> None:
    """Draw one shape into the picture and its mask, in place."""
    height, width = mask.shape
    unit = min(height, width)
    turn = np.array(
        [
            [math.cos(shape.angle), math.sin(shape.angle)],
            [-math.sin(shape.angle), math.cos(shape.angle)],
        ]
    )
    points = (OUTLINES[shape.kind] * (shape.stretch, 1)) @ turn * (shape.radius * unit)
    points += (shape.x * width, shape.y * height)  # (K, 2) in pixels
    left, top = np.maximum(np.floor(points.min(0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(points.max(0)).astype(int) + 1, (width, height))

    size = (int(right - left) * SUPERSAMPLING, int(bottom - top) * SUPERSAMPLING)
    fine = Image.new("L", size)
    # PIL names pixels by their centres, the outline is in edges: hence the half
    corners = (points - (left, top)) * SUPERSAMPLING - 0.5
    ImageDraw.Draw(fine).polygon([tuple(p) for p in corners.tolist()], fill=255)
    cover = np.asarray(fine.reduce(SUPERSAMPLING), np.float32) / 255
    box = (slice(top, bottom), slice(left, right))
    _fill(canvas[box], cover, shape.paint, int(left), int(top), unit)
    mask[box][cover >= 0.5] = 1 + CLASSES.index(shape.kind)


def _fill(
    canvas: np.ndarray, cover: np.ndarray, paint: Paint, left: int, top: int, unit: int
) -> None:
    """Lay paint over a part of the picture, in place.

    Args:
        canvas: (h, w, 3) float32, a view of the picture whose corner is at (left, top).
        cover: (h, w) float32, how much of each pixel the paint covers, 0..1.
        unit: pixels of the picture's shorter side.
    """
    rgb, shade = np.float32(paint.rgb), np.float32(paint.shade)
    if paint.pattern == "plain":
        colour = rgb
    else:
        h, w = cover.shape
        wave = np.float32(2 * math.pi / (paint.period * unit))
        y = wave * np.arange(top, top + h, dtype=np.float32)[:, None]
        x = wave * np.arange(left, left + w, dtype=np.float32)[None, :]
        cos, sin = np.float32(math.cos(paint.angle)), np.float32(math.sin(paint.angle))
        along = np.sin(cos * x + sin * y)
        if paint.pattern == "striped":
            level = along
        else:
            across = np.sin(cos * y - sin * x)
            level = along * across if paint.pattern == "checked" else along + across - 0.8
        # a steep ramp instead of a step, so that the pattern's edges are soft
        colour = rgb + np.clip(2 * level + 0.5, 0, 1)[:, :, None] * (shade - rgb)
    canvas += cover[:, :, None] * (colour - canvas)


def caption(scene: Scene) -> str:
    """One sentence that tells the main shape, the background and how many small shapes there are."""
    main, ground, count = scene.main, scene.background, len(scene.others)
    text = f"a {main.paint.pattern} {main.paint.colour} {main.kind} at the {place(main)}"
    text += f" of a {ground.pattern} {ground.colour} picture"
    return text + f" with {NUMBERS[count]} small shape{'' if count == 1 else 's'}"


def title(scene: Scene) -> str:
    """One phrase that tells the main shape and the colour of the background."""
    main, ground = scene.main, scene.background
    return f"a {main.paint.colour} {main.kind} at the {place(main)} of a {ground.colour} picture"


def place(shape: Shape) -> str:
    """The quarter of the picture that holds the shape's centre, one of PLACES."""
    return PLACES[2 * (shape.y >= 0.5) + (shape.x >= 0.5)]


def facts(scene: Scene) -> tuple[Fact, ...]:
    """What can be asked of the picture and answered from it alone."""
    main, ground = scene.main, scene.background
    asked = [
        ("What is the large shape?", main.kind, CLASSES),
        ("What colour is the large shape?", main.paint.colour, tuple(PALETTE)),
        ("What colour is the background?", ground.colour, tuple(PALETTE)),
        ("How is the large shape painted?", main.paint.pattern, PATTERNS),
        ("How is the background painted?", ground.pattern, PATTERNS),
        ("Where is the large shape?", place(main), PLACES),
        ("How many small shapes are there?", NUMBERS[len(scene.others)], NUMBERS),
    ]
    return tuple(
        Fact(question, answer, tuple(other for other in known if other != answer))
        for question, answer, known in asked
    )
