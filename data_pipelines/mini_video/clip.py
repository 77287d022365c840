"""What MiniVideo's clips show, and their frames: a shape that moves, or one after another.

Shapes, colours and grounds are MiniMMEB's, so that a model of its images knows what it sees.
"""

import dataclasses
import random

from data_pipelines.mini_mmeb import render, world
from data_pipelines.mini_mmeb.world import Kind, Scene
from unime_jax.data import clips

FRAMES = 6
SIDE = 48  # pixels
# Where a thing is in the first and the last frame: y grows downwards.
NEAR, FAR, MIDDLE = 12.0, 36.0, 24.0
ROOM = 6.0  # around the middle
DIRECTIONS = ("left", "right", "up", "down")
OPPOSITE = dict(zip(DIRECTIONS, ("right", "left", "down", "up"), strict=True))


@dataclasses.dataclass(frozen=True)
class Moving:
    """One shape that crosses the picture; `texture` seeds its ground, size and jitter."""

    kind: Kind
    background: str
    direction: str
    texture: int

    @property
    def caption(self) -> str:
        return f"{world.phrase(*self.kind)} on {self.background} moves {self.direction}"

    @property
    def label(self) -> str:
        """What is to be seen in any frame, in the words of MiniMMEB's labels."""
        return f"{' '.join(self.kind)} on {self.background}"

    def turned(self) -> "Moving":
        """The same shape in the opposite direction: the same frames from the last to the first."""
        return dataclasses.replace(self, direction=OPPOSITE[self.direction])

    def scenes(self) -> list[Scene]:
        rng = random.Random(self.texture)
        thing = world.thing(rng, self.kind, 0, 0, rng.choice(world.SIZES), 11.3)
        aside = MIDDLE + rng.uniform(-5, 5)
        scenes = []
        for number in range(FRAMES):
            along = NEAR + (FAR - NEAR) * number / (FRAMES - 1)
            along = SIDE - along if self.direction in ("left", "up") else along
            x, y = (along, aside) if self.direction in ("left", "right") else (aside, along)
            placed = dataclasses.replace(thing, x=x, y=y)
            scenes.append(Scene(SIDE, SIDE, self.background, (placed,), self.texture))
        return scenes


@dataclasses.dataclass(frozen=True)
class Following:
    """One shape in the first half of the frames, another in the second."""

    kinds: tuple[Kind, Kind]
    background: str
    texture: int

    @property
    def caption(self) -> str:
        first, then = (world.phrase(*kind) for kind in self.kinds)
        return f"{first} then {then} on {self.background}"

    @property
    def labels(self) -> tuple[str, str]:
        """Of the first shape and of the other."""
        first, then = (f"{' '.join(kind)} on {self.background}" for kind in self.kinds)
        return first, then

    def turned(self) -> "Following":
        """The same shapes in the other order: the same frames from the last to the first."""
        return dataclasses.replace(self, kinds=self.kinds[::-1])

    def scenes(self) -> list[Scene]:
        rng, things = random.Random(self.texture), {}
        for kind in sorted(self.kinds):  # so that the other order has the same frames
            x, y = (MIDDLE + rng.uniform(-ROOM, ROOM) for _ in range(2))
            things[kind] = world.thing(rng, kind, x, y, rng.choice(world.SIZES), 14)
        shown = [things[self.kinds[2 * number // FRAMES]] for number in range(FRAMES)]
        return [Scene(SIDE, SIDE, self.background, (thing,), self.texture) for thing in shown]


Shown = Moving | Following


def encode(shown: Shown) -> bytes:
    """The clip as an archive of PNG frames without a rate, the same bytes for the same clip."""
    return clips.archive([render.encode(scene) for scene in shown.scenes()], None)


def moving(rng: random.Random, kind: Kind, direction: str = "") -> Moving:
    """A clip of this shape; "" stands for any direction."""
    ground, way = rng.choice(world.BACKGROUNDS), direction or rng.choice(DIRECTIONS)
    return Moving(kind, ground, way, rng.randrange(1 << 30))


def following(rng: random.Random, kinds: tuple[Kind, Kind]) -> Following:
    """A clip of these shapes."""
    return Following(kinds, rng.choice(world.BACKGROUNDS), rng.randrange(1 << 30))
