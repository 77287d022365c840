"""Draw MiniMMEB's pictures and encode them as PNG, the same bytes for the same picture."""

import dataclasses
import functools
import io
import math
import random

import numpy as np
from PIL import Image, ImageDraw

from data_pipelines.mini_mmeb import digits
from data_pipelines.mini_mmeb.world import Scene, Thing

SCALE = 3  # drawn this much larger, then averaged down
INK = {
    "red": (222, 38, 44),
    "green": (44, 168, 66),
    "blue": (42, 96, 232),
    "yellow": (250, 214, 36),
    "purple": (158, 62, 196),
    "orange": (246, 134, 24),
    "pink": (255, 128, 190),
    "cyan": (30, 205, 220),
}
GROUND = {
    "white": (246, 246, 246),
    "gray": (140, 140, 140),
    "black": (26, 26, 26),
    "sky": (166, 206, 244),
    "sand": (232, 212, 168),
    "mint": (178, 232, 192),
    "stripes": (240, 240, 240),
    "dots": (78, 72, 66),
}
MARKS = {"stripes": -110.0, "dots": 150.0}  # the others have but a faint texture


@dataclasses.dataclass(frozen=True)
class Crop:
    """The part of a scene around one of its things, enlarged to a 48-pixel square."""

    scene: Scene
    thing: int


@dataclasses.dataclass(frozen=True)
class Digit:
    """A handwritten digit of scikit-learn's bundled set, by its row there."""

    row: int


Picture = Scene | Crop | Digit


def encode(picture: Picture) -> bytes:
    """The picture as PNG bytes."""
    match picture:
        case Scene():
            image = draw(picture)
        case Crop(scene, index):
            image = crop(draw(scene), scene.things[index])
        case Digit(row):
            image = digit(row)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@functools.lru_cache(maxsize=256)
def draw(scene: Scene) -> Image.Image:
    image = background(scene)
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        ink = INK[thing.color]
        rim = tuple(int(0.62 * value) for value in ink)
        paint(pen, thing, thing.radius, rim)
        paint(pen, thing, thing.radius - (1.6 if thing.shape == "star" else 1.1), ink)
    return image.reduce(SCALE)


def paint(pen: ImageDraw.ImageDraw, thing: Thing, radius: float, ink: tuple[int, ...]) -> None:
    x, y, r = thing.x * SCALE, thing.y * SCALE, radius * SCALE
    if thing.shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)
        return
    turn = math.radians(thing.turn)
    cos, sin = math.cos(turn), math.sin(turn)
    outline = OUTLINES[thing.shape]
    pen.polygon(
        [(x + r * (u * cos - v * sin), y + r * (u * sin + v * cos)) for u, v in outline], fill=ink
    )


def regular(corners: int, *radii: float) -> list[tuple[float, float]]:
    """Corners on circles of the given radii in turn, the first one straight up."""
    angles = [2 * math.pi * i / corners for i in range(corners)]
    return [
        (radii[i % len(radii)] * math.sin(a), -radii[i % len(radii)] * math.cos(a))
        for i, a in enumerate(angles)
    ]


ARM = 0.34
OUTLINES = {
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": [(u, v + 0.22) for u, v in regular(3, 1.2)],
    "star": regular(10, 1.12, 0.5),
    "cross": [
        *[(-ARM, -1), (ARM, -1), (ARM, -ARM), (1, -ARM), (1, ARM), (ARM, ARM)],
        *[(ARM, 1), (-ARM, 1), (-ARM, ARM), (-1, ARM), (-1, -ARM), (-ARM, -ARM)],
    ],
}


def background(scene: Scene) -> Image.Image:
    """The scene's ground with a tint, a texture and a soft slope of its own, enlarged."""
    rng = random.Random(scene.texture)
    name = scene.background
    pattern = name if name in MARKS else rng.choice(("plain", "stripes", "dots", "checks"))
    step = MARKS.get(name, rng.uniform(-9, 9))
    height, width = scene.height, scene.width
    y = np.arange(height * SCALE, dtype=np.float32)[:, None] / SCALE + rng.uniform(0, 12)
    x = np.arange(width * SCALE, dtype=np.float32) / SCALE + rng.uniform(0, 12)
    match pattern:
        case "plain":
            mark = np.zeros((height * SCALE, width * SCALE), bool)
        case "stripes":
            angle = rng.choice((0, 45, 90, 135)) * math.pi / 180
            mark = np.mod(x * math.cos(angle) + y * math.sin(angle), 8) < 3.2
        case "dots":
            mark = (np.mod(x, 8) - 4) ** 2 + (np.mod(y, 8) - 4) ** 2 < 4.8
        case "checks":
            mark = (np.mod(x, 12) < 6) ^ (np.mod(y, 12) < 6)
    coverage = mark.reshape(height, SCALE, width, SCALE).mean((1, 3), dtype=np.float32)
    slope = (y[::SCALE] / height + x[::SCALE] / width - 1) * rng.uniform(-7, 7)
    tint = np.array([rng.uniform(-6, 6) for _ in range(3)], np.float32)
    value = np.array(GROUND[name], np.float32) + (step * coverage + slope)[..., None] + tint
    image = Image.fromarray(np.clip(value, 0, 255).astype(np.uint8))
    return image.resize((width * SCALE, height * SCALE), Image.Resampling.NEAREST)


def crop(image: Image.Image, thing: Thing) -> Image.Image:
    """A square around the thing, a little of its surroundings included, inside the image."""
    half = min(thing.radius + 2.5, image.width / 2, image.height / 2)
    x = min(max(thing.x, half), image.width - half)
    y = min(max(thing.y, half), image.height - half)
    box = (x - half, y - half, x + half, y + half)
    return image.resize((48, 48), Image.Resampling.BICUBIC, box=box)


def digit(row: int) -> Image.Image:
    """The 8 x 8 digit, enlarged smoothly, white on black, with a margin of two pixels."""
    pixels = np.clip(digits.images()[row] * 16, 0, 255).astype(np.uint8)
    page = Image.new("L", (48, 48))
    page.paste(Image.fromarray(pixels).resize((44, 44), Image.Resampling.BICUBIC), (2, 2))
    return page.convert("RGB")
