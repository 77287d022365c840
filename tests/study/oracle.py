"""What is true of MiniMMEB's rows, as its builder knows it: right answers, and a judge that knows.

A row's meaning names its answer in words; rows of one source with equal meaning answer each other.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from data_pipelines.mini_mmeb import content
from unime_jax import config, config_reader
from unime_jax.batch import Example, Item
from unime_jax.data import judged_negatives, judged_rows
from unime_jax.data.mined_rows import MinedRows
from unime_jax.data.schema import to_example
from unime_jax.training import inputs

MARGIN = 0.01  # of UniME-V2: candidates the judge scores higher than the positive less this go
BLOCK = 480  # rows of a file of judged rows


def meanings(data: pathlib.Path) -> dict[str, list[str]]:
    """The meaning of every training row, by source."""
    built = json.loads((data / "mini_mmeb" / "parameters.json").read_text())
    return {
        source.name: [
            row.meaning for row in content.train_rows(source, built["seed"], built["train_rows"])
        ]
        for source in content.SOURCES
    }


def alike(meanings: Sequence[str]) -> Bool[np.ndarray, "n n"]:
    """Which other rows of a source mean what a row means: its false negatives."""
    names = np.array(meanings)
    return (names[:, None] == names) & ~np.eye(len(names), dtype=bool)


def overlap(one: str, other: str) -> float:
    """Words that two meanings have in common, as a share of all that they have; 1: the same."""
    if one == other:
        return 1.0
    words, others = (set(re.findall(r"\w+", text)) for text in (one, other))
    return len(words & others) / max(len(words | others), 1)


def mined_examples(values: ConfigDict) -> list[tuple[Example, str, list[str]]]:
    """Every row with its mined negatives, its meaning, and theirs; `values` names the table."""
    settings = config_reader.read(config.TrainConfig, values.to_dict())
    rows, known = inputs.open_rows(settings.data), meanings(pathlib.Path(settings.data.folder))
    examples = []
    for name, source in rows.items():
        assert isinstance(source, MinedRows)
        for index in range(len(source)):
            example = to_example(name, source[index], str(index))
            numbers = source.mined.row(name, index)["number"]
            places = source.mined.places[numbers[numbers >= 0]].tolist()
            theirs = [
                _meaning(known[source.pool[place][0]][row], side, item)
                for (place, row, side), item in zip(places, example.negatives, strict=True)
            ]
            examples.append((example, known[name][index], theirs))
    return examples


def _meaning(of_row: str, side: int, item: Item) -> str:
    """Of a candidate: its row's if it is the positive; a caption that is a negative is its own."""
    return item.text if side else of_row


def judge(folder: pathlib.Path, values: ConfigDict) -> None:
    """Writes the mined rows as job judge does, judged by the overlap of meanings.

    Candidates that mean what the positive means are right answers, and dropped.
    """
    examples = mined_examples(values)
    counts: dict[str, int] = {}
    for example, _, _ in examples:
        counts[example.source] = counts.get(example.source, 0) + 1
    writer = judged_rows.Writer(
        folder, sources=counts, block=BLOCK, provenance={"judge": "overlap of meanings"}
    )
    by_source = {name: [row for row in examples if row[0].source == name] for name in counts}
    for block in writer.missing():
        own = by_source[block.source][block.rows.start : block.rows.stop]
        writer.put(block, [_judged(*row) for row in own])
    writer.finish()


def _judged(example: Example, meaning: str, theirs: Sequence[str]) -> Example:
    scores = (1.0, *(overlap(meaning, other) for other in theirs))
    kept = judged_negatives.choose(scores, margin=MARGIN, keep=0)
    return dataclasses.replace(
        example,
        negatives=tuple(example.negatives[number] for number in kept),
        scores=(1.0, *(scores[1 + number] for number in kept)),
    )
