"""What MiniMMEB's pictures contain: coloured shapes in a scene, and what may truly be said of it.

Nothing here draws; `render.py` does. Coordinates are pixels, y grows downwards.
"""

import dataclasses
import itertools
import math
import random
from collections.abc import Sequence

COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "pink", "cyan")
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES = ("small", "big")
BACKGROUNDS = ("white", "gray", "black", "sky", "sand", "mint", "stripes", "dots")
PLACES = ("top left", "top right", "bottom left", "bottom right")
SIDES = ("left of", "right of", "above", "below")
OPPOSITE = dict(zip(SIDES, ("right of", "left of", "below", "above"), strict=True))
STACKED = ("inside", "in front of")

SMALL, BIG = 8.2, 10.4  # a radius up to SMALL is small, from BIG on it is big; none lies between

Kind = tuple[str, str]  # colour, shape

KINDS: tuple[Kind, ...] = tuple(itertools.product(COLORS, SHAPES))
# Never in a training picture or text: one kind a shape, so every colour and shape is still learnt.
HELD_OUT: tuple[Kind, ...] = (
    ("purple", "circle"),
    ("yellow", "square"),
    ("blue", "triangle"),
    ("red", "star"),
    ("green", "cross"),
)
SEEN: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind not in HELD_OUT)


@dataclasses.dataclass(frozen=True)
class Thing:
    """One shape: its centre, the radius of its circle, and its turn in degrees."""

    color: str
    shape: str
    x: float
    y: float
    radius: float
    turn: float = 0.0

    @property
    def kind(self) -> Kind:
        return self.color, self.shape

    @property
    def size(self) -> str:
        return "small" if self.radius <= SMALL else "big"


@dataclasses.dataclass(frozen=True)
class Scene:
    """Things on a background, painted in order; `texture` seeds the background's details."""

    width: int
    height: int
    background: str
    things: tuple[Thing, ...]
    texture: int

    def place(self, thing: Thing) -> str:
        """The quadrant of the thing's centre, one of PLACES."""
        row = "top" if thing.y < self.height / 2 else "bottom"
        return f"{row} {'left' if thing.x < self.width / 2 else 'right'}"

    def content(self) -> tuple:
        """What the scene shows, whatever the jitter: equal content is the same picture in words."""
        return self.background, tuple(
            sorted((*thing.kind, thing.size, self.place(thing)) for thing in self.things)
        )


@dataclasses.dataclass(frozen=True)
class Mention:
    """A thing as a caption names it; "" leaves the size or the place open."""

    kind: Kind
    size: str = ""
    place: str = ""

    def fits(self, thing: Thing, scene: Scene) -> bool:
        return (
            thing.kind == self.kind
            and self.size in ("", thing.size)
            and self.place in ("", scene.place(thing))
        )


@dataclasses.dataclass(frozen=True)
class Caption:
    """A statement about a scene. `relation` holds between the first two mentions."""

    mentions: tuple[Mention, ...]
    relation: str = ""
    background: str = ""

    def text(self) -> str:
        words = [phrase(*mention.kind, size=mention.size) for mention in self.mentions]
        if self.relation:
            words = [f"{words[0]} {self.relation} {words[1]}", *words[2:]]
        else:
            words = [
                f"{mention.place} {word}".strip()
                for mention, word in zip(self.mentions, words, strict=True)
            ]
        listed = (", " if self.mentions[0].place else " and ").join(words)
        return f"{listed} on {self.background}" if self.background else listed

    def holds(self, scene: Scene) -> bool:
        """Whether any reading of the caption, however generous, is true of the scene."""
        if self.background not in ("", scene.background):
            return False
        fitting = [
            [thing for thing in scene.things if mention.fits(thing, scene)]
            for mention in self.mentions
        ]
        if not all(fitting):
            return False
        return any(
            len(set(things)) == len(things)
            and (not self.relation or related(self.relation, things[0], things[1], scene))
            for things in itertools.product(*fitting)
        )

    def swapped(self) -> "Caption":
        """The caption with the kinds of its first two mentions exchanged."""
        first, second, *rest = self.mentions
        return dataclasses.replace(
            self,
            mentions=(
                dataclasses.replace(first, kind=second.kind),
                dataclasses.replace(second, kind=first.kind),
                *rest,
            ),
        )


def phrase(color: str, shape: str, *, size: str = "", count: int = 1) -> str:
    """Such as "a big red circle" or "two red circles"."""
    if count == 1:
        words = [word for word in (size, color, shape) if word]
        return " ".join(("an" if words[0] == "orange" else "a", *words))
    return f"{NUMBERS[count]} {color} {plural(shape)}"


def plural(shape: str) -> str:
    return "crosses" if shape == "cross" else f"{shape}s"


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def related(relation: str, one: Thing, other: Thing, scene: Scene) -> bool:
    """Whether `one` is `relation` `other` in the most generous reading."""
    match relation:
        case "left of":
            return one.x < other.x - 1
        case "right of":
            return one.x > other.x + 1
        case "above":
            return one.y < other.y - 1
        case "below":
            return one.y > other.y + 1
    on_top = scene.things.index(one) > scene.things.index(other)
    return on_top and math.hypot(one.x - other.x, one.y - other.y) < one.radius + other.radius


def radius(rng: random.Random, size: str, largest: float) -> float:
    """A radius of that size, at most `largest` where the size is big."""
    return rng.uniform(7, SMALL) if size == "small" else rng.uniform(largest - 1, largest)


def canvas(rng: random.Random, orientation: str = "") -> tuple[int, int]:
    """Width and height: mostly 48 x 48; one in six is wide, tall or what `orientation` allows."""
    if rng.random() < 5 / 6:
        return 48, 48
    shape = orientation or rng.choice(("wide", "tall"))
    return (96, 48) if shape == "wide" else (48, 96)


def thing(rng: random.Random, kind: Kind, x: float, y: float, size: str, largest: float) -> Thing:
    """A thing near (x, y)."""
    turn = rng.uniform(-8, 8)
    return Thing(*kind, x, y, radius(rng, size, largest), turn)


def scene(
    rng: random.Random, shape: tuple[int, int], background: str, things: Sequence[Thing]
) -> Scene:
    return Scene(*shape, background, tuple(things), rng.randrange(1 << 30))


def single(rng: random.Random, kind: Kind, size: str = "", background: str = "") -> Scene:
    """One thing near the middle."""
    width, height = shape = canvas(rng)
    size = size or rng.choice(SIZES)
    room = 3 if size == "big" else 6
    x, y = width / 2 + rng.uniform(-room, room), height / 2 + rng.uniform(-room, room)
    background = background or rng.choice(BACKGROUNDS)
    return scene(rng, shape, background, [thing(rng, kind, x, y, size, 18)])


def beside(rng: random.Random, relation: str, kinds: Sequence[Kind], background: str = "") -> Scene:
    """Two things, the first standing in `relation`, one of SIDES, to the second."""
    sideways = relation in ("left of", "right of")
    width, height = shape = canvas(rng, "wide" if sideways else "tall")
    slack = [rng.uniform(-1.0, 1.0) for _ in range(2)], [rng.uniform(-3, 3) for _ in range(2)]
    if sideways:
        spots = [(width * (1 + 2 * i) / 4 + slack[0][i], height / 2 + slack[1][i]) for i in (0, 1)]
    else:
        spots = [(width / 2 + slack[1][i], height * (1 + 2 * i) / 4 + slack[0][i]) for i in (0, 1)]
    if relation in ("right of", "below"):
        spots.reverse()
    things = [
        thing(rng, kind, x, y, rng.choice(SIZES), 11.3)
        for kind, (x, y) in zip(kinds, spots, strict=True)
    ]
    rng.shuffle(things)
    return scene(rng, shape, background or rng.choice(BACKGROUNDS), things)


def stacked(
    rng: random.Random, relation: str, kinds: Sequence[Kind], background: str = ""
) -> Scene:
    """The first thing painted `inside` or `in front of` the second, which is big and convex."""
    shape = canvas(rng)
    x, y = shape[0] / 2, shape[1] / 2
    if relation == "inside":
        below = Thing(*kinds[1], x + rng.uniform(-3, 3), y + rng.uniform(-3, 3), 18.5, 0.0)
        above = Thing(*kinds[0], below.x, below.y + 0.5, rng.uniform(6.5, 7.5), rng.uniform(-8, 8))
    else:
        angle = rng.uniform(0, 2 * math.pi)
        dx, dy = 7.5 * math.cos(angle), 7.5 * math.sin(angle)
        below = Thing(*kinds[1], x - dx, y - dy, rng.uniform(12.5, 14), 0.0)
        above = Thing(*kinds[0], x + dx, y + dy, rng.uniform(11, 12), rng.uniform(-8, 8))
    return scene(rng, shape, background or rng.choice(BACKGROUNDS), [below, above])


def quadrants(rng: random.Random, kinds: Sequence[Kind], *, sizes: Sequence[str] = SIZES) -> Scene:
    """Up to four things, each in a quadrant of its own, in the order of PLACES."""
    width, height = shape = canvas(rng)
    places = sorted(rng.sample(range(4), len(kinds)))
    things = []
    for place, kind in zip(places, kinds, strict=True):
        x = width * (1 + 2 * (place % 2)) / 4 + rng.uniform(-1, 1)
        y = height * (1 + 2 * (place // 2)) / 4 + rng.uniform(-1, 1)
        things.append(thing(rng, kind, x, y, rng.choice(sizes), 11.3))
    return scene(rng, shape, rng.choice(BACKGROUNDS), things)
