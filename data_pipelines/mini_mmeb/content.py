"""The rows of MiniMMEB before they are written: training, evaluation, composition.

Rows follow from (seed, count) alone. The wording of OOD instructions is never seen in training,
but nearly all of their words are: a model trained from scratch knows no others.
"""

import dataclasses
import functools
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from data_pipelines.mini_mmeb import digits, tasks
from data_pipelines.mini_mmeb.pairs import Draw, Pair, Side, Task, answers
from data_pipelines.mini_mmeb.render import Picture
from data_pipelines.mini_mmeb.world import HELD_OUT, KINDS, SEEN, Caption, Mention, Scene

CANDIDATES = 50
POOL = 80  # pairs an evaluation dataset draws its candidates from, at least
HARD_SHARE = 0.1
REPEATS = 0.12


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A task under a name. IND datasets are training sources as well, OOD ones are evaluated only.

    `unseen`: queries are about kinds that no training row has.
    """

    name: str
    meta: str
    split: str
    task: Callable[[Draw], Task]
    unseen: bool = False


def _main_object(draw: Draw) -> Task:
    return tasks.main_object(draw, "Identify the object.")


def _new_object(draw: Draw) -> Task:
    return tasks.main_object(draw, "Identify the object in the image.")


def _count(draw: Draw) -> Task:
    return tasks.count(draw, "Answer the question: How many {things}?", others=True)


def _group(draw: Draw) -> Task:
    return tasks.count(draw, "How many {things} on the image?", others=False)


def _scene(draw: Draw) -> Task:
    return tasks.text_to_image(draw, "Find an image of this scene: {}\n")


def _new_scene(draw: Draw) -> Task:
    return tasks.text_to_image(draw, "Find this scene: {}\n")


DATASETS = (
    Dataset("Digits", "CLS", "IND", tasks.digit),
    Dataset("Objects", "CLS", "IND", _main_object),
    Dataset("Backgrounds", "CLS", "IND", tasks.background),
    Dataset("NewObjects", "CLS", "OOD", _new_object, unseen=True),
    Dataset("Counts", "VQA", "IND", _count),
    Dataset("Relations", "VQA", "IND", tasks.relation),
    Dataset("Groups", "VQA", "OOD", _group, unseen=True),
    Dataset("Scenes_t2i", "RET", "IND", _scene),
    Dataset("Scenes_i2t", "RET", "IND", tasks.image_to_text),
    Dataset("LongCaptions_t2i", "RET", "IND", tasks.long_caption),
    Dataset("Edits", "RET", "IND", tasks.edit),
    Dataset("DigitSearch", "RET", "IND", tasks.digit_search),
    Dataset("DigitPairs", "RET", "OOD", tasks.digit_pair),
    Dataset("NewScenes_t2i", "RET", "OOD", _new_scene, unseen=True),
    Dataset("Crops", "VG", "IND", tasks.crop),
    Dataset("Pointing", "VG", "OOD", tasks.pointing, unseen=True),
)
SOURCES = tuple(dataset for dataset in DATASETS if dataset.split == "IND")


@dataclasses.dataclass(frozen=True)
class TrainRow:
    id: str
    query: Side
    positive: Side
    negatives: tuple[Side, ...]
    meaning: str


@dataclasses.dataclass(frozen=True)
class EvalRow:
    """`candidates[0]` is the right one; `asks` is what it shows and the others do not."""

    id: str
    query: Side
    candidates: tuple[Side, ...]
    asks: object


@dataclasses.dataclass(frozen=True)
class CompositionRow:
    id: str
    path: str
    scene: Scene
    caption: Caption
    negative: Caption


@functools.lru_cache(maxsize=len(SOURCES))
def train_rows(source: Dataset, seed: int, count: int) -> tuple[TrainRow, ...]:
    """`count` rows of a training source; some repeat the meaning of others under another id."""
    rng = random.Random(f"{seed}/train/{source.name}")
    draw = Draw(source.name, rng, digits.by_label(seed, test=False), test=False, repeats=REPEATS)
    drawn = list(itertools.islice(source.task(draw), count))
    return tuple(
        TrainRow(
            f"{source.name}-{number:06d}",
            pair.query,
            pair.answer,
            negatives(source.name, rng, pair),
            pair.meaning,
        )
        for number, pair in enumerate(drawn)
    )


def negatives(source: str, rng: random.Random, pair: Pair) -> tuple[Side, ...]:
    """Explicit negatives: up to two captions a row, an image now and then, elsewhere none."""
    if source == "Scenes_i2t":
        return pair.hard[: rng.choice((0, 1, 2))]
    if source == "Scenes_t2i":
        return pair.hard[: rng.random() < 0.15]
    return ()


def false_negatives(rows: Sequence[TrainRow]) -> list[list[int]]:
    """Groups of rows of one source whose positives mean the same, by row number.

    Where two positives of a group are one item (the same text, say) their keys tell; where they
    differ only this list does.
    """
    groups = defaultdict(list)
    for number, row in enumerate(rows):
        groups[row.meaning].append(number)
    return [numbers for numbers in groups.values() if len(numbers) > 1]


@functools.lru_cache(maxsize=len(DATASETS))
def eval_rows(dataset: Dataset, seed: int, count: int) -> tuple[EvalRow, ...]:
    """`count` rows, each with 50 distinct candidates or as many as there are answers."""
    draw = Draw(
        dataset.name,
        random.Random(f"{seed}/eval/{dataset.name}"),
        digits.by_label(seed, test=True),
        test=True,
        kinds=KINDS if dataset.unseen else SEEN,
        gold=HELD_OUT if dataset.unseen else SEEN,
    )
    pool = list(itertools.islice(dataset.task(draw), max(count, POOL)))
    return tuple(
        EvalRow(f"{dataset.name}-{number:06d}", pair.query, candidates(draw, pair, pool), pair.asks)
        for number, pair in enumerate(pool[:count])
    )


def candidates(draw: Draw, pair: Pair, pool: list[Pair]) -> tuple[Side, ...]:
    """The answer, then distinct wrong candidates: some hard ones, the pair's others, the pool's.

    Not all hard ones, so that a model that cannot tell them yet is not at chance everywhere.
    """
    hard = [side for side in pair.hard if draw.rng.random() < HARD_SHARE]
    others = [] if pair.closed else [other.answer for other in pool]
    draw.rng.shuffle(others)
    chosen = {pair.answer.key: pair.answer}
    for side in (*hard, *pair.others, *others):
        if len(chosen) == CANDIDATES:
            break
        if not answers(pair.asks, side.shows):
            chosen.setdefault(side.key, side)
    return tuple(chosen.values())


COMPOSITION = ("replace", "swap", "add")


def composition_rows(subset: str, seed: int, count: int) -> list[CompositionRow]:
    """Images with a true caption and one made false by a replacement, swap or addition."""
    rng = random.Random(f"{seed}/composition/{subset}")
    draw = Draw(f"composition_{subset}", rng, (), test=True)
    rows: list[CompositionRow] = []
    while len(rows) < count:
        plan = tasks.plan(draw)
        if subset == "swap" and not plan.relation:
            continue
        scene, caption = plan.draw(draw), plan.caption()
        match subset:
            case "replace":
                negative = tasks.replaced(draw, caption)
            case "swap":
                negative = caption.swapped()
            case "add":
                kind = rng.choice([kind for kind in SEEN if kind not in plan.kinds])
                mentions = (*caption.mentions, Mention(kind))
                negative = dataclasses.replace(caption, mentions=mentions)
        if not negative.holds(scene):
            identity = f"{subset}-{len(rows):06d}"
            rows.append(CompositionRow(identity, draw.path(), scene, caption, negative))
    return rows


def pictures(seed: int, count: int) -> Iterator[tuple[str, Picture]]:
    """Every picture that evaluation and composition name, each path once."""
    seen = set()
    for dataset in DATASETS:
        for row in eval_rows(dataset, seed, count):
            for side in (row.query, *row.candidates):
                if side.picture is not None and side.path not in seen:
                    seen.add(side.path)
                    yield side.path, side.picture
    for subset in COMPOSITION:
        for composed in composition_rows(subset, seed, count):
            yield composed.path, composed.scene


def texts(seed: int, count: int) -> Iterator[str]:
    """All training texts, for a tokenizer to learn from."""
    for source in SOURCES:
        for row in train_rows(source, seed, count):
            for side in (row.query, row.positive, *row.negatives):
                yield side.text
