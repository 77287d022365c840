"""The rows of MiniVideo before they are written: pairs to train on, and queries with candidates.

Rows follow from (seed, count) alone. What a dataset asks for is to be seen in any frame
(appearance), or only in their order; its chance is what guessing reaches.
"""

import dataclasses
import functools
import random
from collections.abc import Callable, Sequence

from data_pipelines.mini_mmeb.world import BACKGROUNDS, SEEN
from data_pipelines.mini_video.clip import (
    DIRECTIONS,
    OPPOSITE,
    Following,
    Moving,
    Shown,
    following,
    moving,
)

VIDEO = "<|video_1|>\n"
REPRESENT = f"{VIDEO}Represent the given video.\n"
CANDIDATES = 50  # of a row of retrieval and of objects


@dataclasses.dataclass(frozen=True)
class Side:
    """A text, a clip, or both."""

    text: str
    clip: Shown | None = None


def path_of(side: Side) -> str:
    """The path of a side's clip, which says what it shows; "" where there is none."""
    if side.clip is None:
        return ""
    return f"{side.clip.caption.replace(' ', '_')}-{side.clip.texture}.zip"


@dataclasses.dataclass(frozen=True)
class Row:
    """A query and its candidates, the right one first, then `hard` ones.

    Those are easily mistaken for it, and are explicit negatives of a training pair.
    """

    query: Side
    candidates: tuple[Side, ...]
    hard: int = 0

    @property
    def trained_on(self) -> tuple[Side, ...]:
        """The positive and the explicit negatives."""
        return self.candidates[: 1 + self.hard]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Rows under a name. `meta` is MMEB's kind of task that its score is averaged with."""

    name: str
    meta: str
    rows: Callable[[random.Random, int], list[Row]]


def _movings(rng: random.Random, count: int) -> list[Moving]:
    """Distinct clips in words, as far as there are so many; each direction equally often."""
    drawn: dict[str, Moving] = {}
    while len(drawn) < min(count, len(SEEN) * len(BACKGROUNDS)):
        clip = moving(rng, rng.choice(SEEN), DIRECTIONS[len(drawn) % len(DIRECTIONS)])
        drawn.setdefault(clip.label, clip)
    more = count - len(drawn)
    return [*drawn.values(), *(moving(rng, rng.choice(SEEN)) for _ in range(more))]


def _objects(rng: random.Random, count: int) -> list[Row]:
    """Which shape on which ground: appearance, chance 1 in `CANDIDATES`."""
    labels = [f"{' '.join(kind)} on {ground}" for kind in SEEN for ground in BACKGROUNDS]
    rows = []
    for clip in _movings(rng, count):
        others = [label for label in rng.sample(labels, CANDIDATES) if label != clip.label]
        own = (clip.label, *others[: CANDIDATES - 1])
        rows.append(Row(Side(f"{VIDEO}Identify the object.\n", clip), tuple(map(Side, own))))
    return rows


def _backgrounds(rng: random.Random, count: int) -> list[Row]:
    """Which ground: appearance, chance 1 in 8."""
    return [
        Row(
            Side(f"{VIDEO}Identify the background.\n", clip),
            tuple(Side(name) for name in _first(clip.background, BACKGROUNDS)),
        )
        for clip in _movings(rng, count)
    ]


def _directions(rng: random.Random, count: int) -> list[Row]:
    """Where it moves to: order, chance 1 in 4."""
    return [
        Row(
            Side(f"{VIDEO}Identify the direction.\n", clip),
            tuple(Side(f"moves {name}") for name in _directions_from(clip.direction)),
            hard=1,
        )
        for clip in _movings(rng, count)
    ]


def _orders(rng: random.Random, count: int) -> list[Row]:
    """Which of two shapes comes first: order, chance 1 in 2."""
    return [
        Row(
            Side(f"{VIDEO}Answer the question: What is first?\n", clip),
            tuple(map(Side, clip.labels)),
            hard=1,
        )
        for clip in _followings(rng, count)
    ]


def _text_to_video(rng: random.Random, count: int) -> list[Row]:
    """Clips by captions; the second candidate is the same in the opposite direction, or order."""
    clips = _mixed(rng, count)
    return [
        Row(
            Side(f"Find this scene: {clip.caption}\n"),
            tuple(Side(REPRESENT, other) for other in _retrieved(rng, clip, clips)),
            hard=1,
        )
        for clip in clips
    ]


def _video_to_text(rng: random.Random, count: int) -> list[Row]:
    """Captions by clips, as the other way round."""
    clips = _mixed(rng, count)
    return [
        Row(
            Side(f"{VIDEO}Find a caption of this scene.\n", clip),
            tuple(Side(other.caption) for other in _retrieved(rng, clip, clips)),
            hard=1,
        )
        for clip in clips
    ]


DATASETS = (
    Dataset("VideoObjects", "CLS", _objects),
    Dataset("VideoBackgrounds", "CLS", _backgrounds),
    Dataset("Directions", "VQA", _directions),
    Dataset("Orders", "VQA", _orders),
    Dataset("Clips_t2v", "RET", _text_to_video),
    Dataset("Clips_v2t", "RET", _video_to_text),
)


@functools.lru_cache(maxsize=2 * len(DATASETS))
def rows(dataset: Dataset, part: str, seed: int, count: int) -> tuple[Row, ...]:
    """`count` rows of a part, "train" or "eval"."""
    return tuple(dataset.rows(random.Random(f"{seed}/{part}/{dataset.name}"), count))


def _followings(rng: random.Random, count: int) -> list[Following]:
    pairs = (rng.sample(SEEN, 2) for _ in range(count))
    return [following(rng, (first, then)) for first, then in pairs]


def _mixed(rng: random.Random, count: int) -> list[Shown]:
    """Moving shapes and shapes in turn, distinct in words even with all of them turned round."""
    drawn: dict[str, Shown] = {}
    while len(drawn) < count:
        number, kinds = len(drawn), rng.sample(SEEN, 2)
        way = DIRECTIONS[number // 2 % len(DIRECTIONS)]
        one, other = kinds
        clip = moving(rng, one, way) if number % 2 else following(rng, (one, other))
        if clip.turned().caption not in drawn:
            drawn.setdefault(clip.caption, clip)
    return list(drawn.values())


def _retrieved(rng: random.Random, clip: Shown, clips: Sequence[Shown]) -> list[Shown]:
    """The clip, the same turned round, and others."""
    others = [other for other in clips if other is not clip]
    return [clip, clip.turned(), *rng.sample(others, min(len(others), CANDIDATES - 2))]


def _first(name: str, names: Sequence[str]) -> list[str]:
    """All names, this one first."""
    return [name, *(other for other in names if other != name)]


def _directions_from(direction: str) -> list[str]:
    """All directions: this one, the opposite, the others."""
    return list(dict.fromkeys([direction, OPPOSITE[direction], *DIRECTIONS]))
