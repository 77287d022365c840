"""Judge the candidates of training pairs by a multimodal model: the same rows, with scores.

UniME-V2's MLLM-as-a-judge (arXiv 2510.13515): asked whether a candidate meets a query, the score is
P(yes) / (P(yes) + P(no)) of the first token of the answer. <workdir>/rows is what training reads.
The scores themselves are made in `judge_model`.

Every process works alone, on its own devices, on every n-th block of rows, as in job `embed`: when
any of them dies the same command goes on with what is missing, on however many hosts and devices.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from unime_jax import config, config_reader, files
from unime_jax.backbones.io.fingerprint import fingerprint
from unime_jax.batch import Example
from unime_jax.data import formats, judged_negatives, mined_rows
from unime_jax.data.ahead import THREADS, map_ahead
from unime_jax.data.judged_rows import Block, Writer
from unime_jax.data.pairs import open_pairs
from unime_jax.data.quarantine import BadExample, BadItem, Quarantine, failed_path
from unime_jax.data.schema import to_example
from unime_jax.jobs import preflight, preflight_models
from unime_jax.jobs.judge_model import (
    Judge,
    Pair,
    Scored,
    Scorer,
    make_mesh,
    make_scorer,
    open_judge,
    worded,
)
from unime_jax.operations import compilation_cache, disk_errors, workdir_lock
from unime_jax.operations.config_file import write_config

POLL_SECONDS = 5


@dataclasses.dataclass(frozen=True)
class Work:
    """A judging job that is set up, before any weight is read."""

    settings: config.JudgeConfig
    judge: Judge
    sources: Mapping[str, formats.Source]
    writer: Writer


def run(config_dict: ConfigDict, workdir: files.Path) -> None:
    """Begins or resumes the judged rows in `workdir`.

    Rows that training would leave out, and those with a candidate that the model cannot take, are
    left out and listed in quarantine.jsonl.

    Raises:
      ValueError: the config does not make sense, too much is bad, `workdir` was begun with another
        model, question or data, or another process writes the same part of it.
      RuntimeError: a disk takes no more.
    """
    settings = config_reader.read(config.JudgeConfig, config_dict.to_dict())
    preflight.check(
        lambda: make_mesh(settings),
        workdir,
        lambda problems: preflight_models.check_judging(settings, problems),
    )
    lock = f"judge-{jax.process_index()}-of-{jax.process_count()}.lock"
    with (
        disk_errors.explained(workdir),
        workdir_lock.owned(workdir, lock, what="writes this part of the scores in"),
    ):
        compilation_cache.use_for_job(settings.compilation_cache, workdir)
        work = begin(settings, workdir)
        write_config(workdir, config_dict)
        complete = judge_rows(
            work, workdir, process_index=jax.process_index(), process_count=jax.process_count()
        )
        while not complete:  # JAX ends all processes when one leaves: the first waits for the last
            time.sleep(POLL_SECONDS)
            complete = work.writer.finish()
        logging.info("%s is complete: train on %s", workdir, workdir / "rows")


def begin(settings: config.JudgeConfig, workdir: files.Path) -> Work:
    """Opens model and data, and checks both against those that `workdir` began with."""
    judge = open_judge(settings)
    path = files.as_path(settings.data.folder) / settings.data.train
    sources = open_rows(settings.data)
    data: dict[str, object] = {
        "columns": dict(settings.data.columns),
        "files": formats.fingerprint(path),
    }
    if tables := mined_rows.tables(sources):
        data["mined negatives"] = tables
    backbone = judge.backbone
    provenance = {
        "backbone": backbone.base if backbone.adapter is None else str(backbone.adapter),
        "commits": dict(backbone.commits),
        "model": {
            "files": fingerprint(backbone),
            "processing": dataclasses.asdict(backbone.processing),
            "max_length": judge.max_length,
            "dtype": settings.dtype,
        },
        "judging": _asked(settings.judging),
        "template": judge.prompt.template,
        "data": data,
    }
    writer = Writer(
        workdir,
        sources={name: len(rows) for name, rows in sources.items()},
        block=settings.data.block,
        provenance=provenance,
    )
    return Work(settings, judge, sources, writer)


def _asked(judging: config.JudgingConfig) -> dict[str, object]:
    """The question, in full, and what is made of its scores: all that they depend on."""
    asked = dataclasses.asdict(judging) | {"instruction": worded(judging).instruction}
    asked["yes"], asked["no"] = worded(judging).answers
    del asked["share_prefix"]
    return asked


def open_rows(data: config.JudgeDataConfig) -> Mapping[str, formats.Source]:
    """The pairs of each source, with the negatives of `data.mined`.

    Raises:
      FileNotFoundError: as `open_pairs`.
      ValueError: as `open_pairs` and `mined_rows.join`.
    """
    folder = files.as_path(data.folder)
    sources = open_pairs(folder / data.train, data.columns)
    if not data.mined:
        return sources
    used = {name: len(rows) for name, rows in sources.items()}
    return mined_rows.join(sources, used, data.mined, folder, data.columns, data.mined_use)


def judge_rows(work: Work, workdir: files.Path, *, process_index: int, process_count: int) -> bool:
    """One process's part; whether the folder is complete then."""
    settings, writer = work.settings, work.writer
    name = f"quarantine-{process_index}.jsonl" if process_index else "quarantine.jsonl"
    quarantine = Quarantine(workdir / name, settings.data.max_bad_share)
    missing = {id(block) for block in writer.missing()}
    mine = [
        block
        for number, block in enumerate(writer.blocks)
        if id(block) in missing and number % process_count == process_index
    ]
    if mine:
        score, emptied, tokens, tokens_alone = make_scorer(settings, work.judge), 0, 0, 0
        rows = sum(len(block.rows) for block in mine)
        with tqdm(total=rows, unit="row", disable=process_index != 0) as bar:
            for block in mine:
                judged = judge_block(work, block, score)
                quarantine.add(judged.bad, len(block.rows))
                writer.put(block, judged.examples)
                emptied += sum(not example.negatives for example in judged.examples)
                tokens += judged.tokens
                tokens_alone += judged.tokens_alone
                bar.update(len(block.rows))
        logging.info(
            "%d tokens were encoded; with a whole prompt for each candidate it is %d: %.1f %% less",
            tokens,
            tokens_alone,
            100 * (1 - tokens / max(tokens_alone, 1)),
        )
        if emptied:
            logging.warning("%d rows have no negatives, or none that is left", emptied)
    return writer.finish()


class Judged(NamedTuple):
    """A block's examples with scores and the negatives that are kept, and its bad rows.

    Tokens as of `Scored`.
    """

    examples: list[Example]
    bad: list[BadItem]
    tokens: int
    tokens_alone: int


def judge_block(work: Work, block: Block, score: Scorer) -> Judged:
    """Reads, scores and chooses; each pair of a block is asked once."""
    source, judging = work.sources[block.source], work.settings.judging
    examples: list[tuple[int, Example]] = []
    bad: list[BadItem] = []

    def read(row: int) -> tuple[int, Example] | BadExample:
        try:
            return row, to_example(block.source, source[row], str(row))
        except BadExample as error:
            return error

    for result in map_ahead(read, block.rows, ahead=2 * THREADS):
        if isinstance(result, BadExample):
            bad.append(result.item)
        else:
            examples.append(result)
    number_of: dict[tuple[tuple[str, str], tuple[str, str]], int] = {}  # a pair is asked once
    pairs: list[Pair] = []
    for _, example in examples:
        for candidate in (example.positive, *example.negatives):
            key = example.query.identity, candidate.identity
            if number_of.setdefault(key, len(pairs)) == len(pairs):
                pairs.append((example.query, candidate))
    scored = score(pairs) if pairs else Scored(np.zeros(0, np.float32), {}, 0, 0)
    scores, errors = scored.scores, scored.errors
    judged = []
    for row, example in examples:
        candidates = (example.positive, *example.negatives)
        numbers = [number_of[example.query.identity, item.identity] for item in candidates]
        wrong = next((n for n, number in enumerate(numbers) if number in errors), None)
        if wrong is not None:
            error = errors[numbers[wrong]]
            side = f"negative {wrong - 1}" if wrong else "positive"
            path = failed_path(candidates[wrong], error)
            bad.append(BadItem(block.source, example.id or str(row), path, f"{side}: {error}"))
            continue
        own = [float(str(scores[number])) for number in numbers]  # in as few digits as say it
        kept = judged_negatives.choose(own, margin=judging.margin, keep=judging.keep)
        judged.append(
            dataclasses.replace(
                example,
                negatives=tuple(example.negatives[number] for number in kept),
                scores=(own[0], *(own[1 + number] for number in kept)),
            )
        )
    return Judged(judged, bad, scored.tokens, scored.tokens_alone)
