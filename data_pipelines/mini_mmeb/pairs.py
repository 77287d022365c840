"""What MiniMMEB's tasks are made of: the sides of a pair, and when one answers the other."""

import dataclasses
import random
from collections.abc import Iterator, Sequence

from data_pipelines.mini_mmeb.render import Picture
from data_pipelines.mini_mmeb.world import SEEN, Caption, Kind, Scene

IMAGE = "<|image_1|>\n"
REPRESENT = f"{IMAGE}Represent the given image.\n"
CROPPED = f"{IMAGE}Represent the cropped object."


@dataclasses.dataclass(frozen=True)
class Side:
    """A query or a candidate. `shows` is its content as data: a label, a caption or a scene."""

    text: str
    path: str = ""
    picture: Picture | None = None
    shows: object = None

    @property
    def key(self) -> tuple[str, str]:
        return self.text, self.path


@dataclasses.dataclass(frozen=True)
class Pair:
    """A query with its answer, and what else it may be given to choose from.

    `asks` is what a candidate must show. `meaning` names the answer in words: rows of a source
    with equal meaning are false negatives of each other. `hard` are easily mistaken for the
    answer, `others` are further candidates, and where the pair is `closed` there are no more.
    """

    query: Side
    answer: Side
    asks: object
    meaning: str
    hard: tuple[Side, ...] = ()
    others: tuple[Side, ...] = ()
    closed: bool = False


def answers(asks: object, shows: object) -> bool:
    """Whether a candidate that shows `shows` is a right answer to a query that asks `asks`."""
    if isinstance(asks, Caption) and isinstance(shows, Scene):
        return asks.holds(shows)
    if isinstance(asks, Scene) and isinstance(shows, Caption):
        return shows.holds(asks)
    return asks == shows


@dataclasses.dataclass
class Draw:
    """The chance and the material that one dataset is drawn from.

    `kinds` are all that may appear; `gold` those that a query may be about. `repeats` is the
    share of rows that tell an earlier row's scene again, in other pixels or other words.
    """

    name: str
    rng: random.Random
    digits: Sequence[Sequence[int]]
    test: bool
    kinds: Sequence[Kind] = SEEN
    gold: Sequence[Kind] = SEEN
    repeats: float = 0.0
    count: int = 0

    def path(self, detail: str = "") -> str:
        """A new image path in MMEB's manner, such as images/Crops/Train/000012_red circle.png."""
        self.count += 1
        part = "Test" if self.test else "Train"
        return f"images/{self.name}/{part}/{self.count:06d}{detail and '_'}{detail}.png"

    def pick(self, number: int) -> list[Kind]:
        """Distinct kinds, the first of them a gold one."""
        first = self.rng.choice(self.gold)
        others = [kind for kind in self.kinds if kind != first]
        return [first, *self.rng.sample(others, number - 1)]


Task = Iterator[Pair]
