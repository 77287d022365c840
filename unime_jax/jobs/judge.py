"""Judge the candidates of training pairs by a multimodal model: the same rows, with scores.

UniME-V2's MLLM-as-a-judge (arXiv 2510.13515): asked whether a candidate meets a query, the score is
P(yes) / (P(yes) + P(no)) of the first token of the answer. <workdir>/rows is what training reads.

Every process works alone, on its own devices, on every n-th block of rows, as in job `embed`: when
any of them dies the same command goes on with what is missing, on however many hosts and devices.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Float32
from ml_collections import ConfigDict
from tqdm import tqdm

from unime_jax import backbones, config, config_reader, files, sharding
from unime_jax.backbones.io.fingerprint import fingerprint
from unime_jax.backbones.preprocessing import judge_prompt
from unime_jax.backbones.preprocessing.judge_prompt import JudgePrompt
from unime_jax.backbones.preprocessing.prompts import Prompt, name_of, open_tokenizer
from unime_jax.batch import Example, Item, Row
from unime_jax.data import formats, inference_shapes, judged_negatives, mined_rows
from unime_jax.data.ahead import THREADS, map_ahead
from unime_jax.data.inference_batches import Shapes
from unime_jax.data.judged_rows import Block, Writer
from unime_jax.data.pairs import open_pairs
from unime_jax.data.quarantine import BadExample, BadItem, Quarantine, failed_path
from unime_jax.data.schema import to_example
from unime_jax.encode import Model, NonFiniteError, encode_blocks
from unime_jax.jobs import preflight, preflight_models
from unime_jax.models.answers import make_answer_logits
from unime_jax.models.inference import default_execution, targets
from unime_jax.operations import compilation_cache, disk_errors, workdir_lock
from unime_jax.training.setup import write_config

POLL_SECONDS = 5
Pair = tuple[Item, Item]  # a query and a candidate


@dataclasses.dataclass(frozen=True)
class Judge:
    """A model that answers, and what is asked.

    Attributes:
      preprocess: rows of the prompt's items.
      answers: tokens of yes and no.
    """

    backbone: backbones.Backbone
    prompt: JudgePrompt
    preprocess: Callable[[Item], Row]
    max_length: int  # tokens of a prompt
    answers: tuple[int, int]

    def row(self, pair: Pair) -> Row:
        """The row of a query and a candidate, never cut.

        Raises:
          ValueError: it is too long, or an item cannot be used.
        """
        row = self.preprocess(self.prompt.item(*pair))
        if row.truncated:
            raise ValueError(
                f"{name_of(pair[1])}: with its query it is over {self.max_length} tokens, and a"
                " judge sees whole texts: raise config.max_length"
            )
        return row


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
        lambda: _make_mesh(settings),
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
        "judging": dataclasses.asdict(settings.judging),
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


def open_judge(settings: config.JudgeConfig) -> Judge:
    """The model's files, its prompt and answers; no weights are read.

    Raises:
      ValueError: the folder is no model with a head and a chat template.
    """
    opened = backbones.open_backbone(
        settings.backbone,
        max_length=settings.max_length,
        revision=settings.revision,
        processing=settings.processing,
    )
    backbone = backbones.with_lm_head(opened)
    assert backbone.lm_head is not None
    tokenizer = open_tokenizer(backbone.folder)
    judging, own = settings.judging, backbone.preprocess.prompt
    assert isinstance(own, Prompt), "a family with a head has chat prompts"
    prompt, whole = judge_prompt.open_judge_prompt(
        backbone.folder, tokenizer, own, judging.instruction
    )
    return Judge(
        backbone=backbone,
        prompt=prompt,
        preprocess=backbone.lm_head.preprocess(whole),
        max_length=whole.max_length,
        answers=judge_prompt.answer_tokens(tokenizer, (judging.yes, judging.no)),
    )


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
        score, emptied = make_scorer(settings, work.judge), 0
        rows = sum(len(block.rows) for block in mine)
        with tqdm(total=rows, unit="row", disable=process_index != 0) as bar:
            for block in mine:
                judged, bad = judge_block(work, block, score)
                quarantine.add(bad, len(block.rows))
                writer.put(block, judged)
                emptied += sum(not example.negatives for example in judged)
                bar.update(len(block.rows))
        if emptied:
            logging.warning("%d rows have no negatives, or none that is left", emptied)
    return writer.finish()


Scorer = Callable[[Sequence[Pair]], tuple[Float32[np.ndarray, " n"], dict[int, ValueError]]]


def make_scorer(settings: config.JudgeConfig, judge: Judge) -> Scorer:
    """Reads the weights; a function from pairs to scores, NaN where there is an error instead."""
    dtype, mesh = jnp.dtype(settings.dtype), _make_mesh(settings)
    graph, wanted = targets(judge.backbone.make_model, mesh, dtype)
    logits = make_answer_logits(
        graph,
        default_execution(dtype),
        judge.answers,
        repetition_penalty=settings.judging.repetition_penalty,
    )
    model = Model(logits, ({}, judge.backbone.load(wanted)), mesh)
    shapes: Shapes = inference_shapes.shapes_of(
        judge.backbone.layout,
        shards=sharding.row_shards(mesh),
        batch_size=settings.batch_size,
        max_length=judge.max_length,
    )

    def score(
        pairs: Sequence[Pair],
    ) -> tuple[Float32[np.ndarray, " n"], dict[int, ValueError]]:
        errors: dict[int, ValueError] = {}

        def prepare(number: int) -> Row | None:
            try:
                return judge.row(pairs[number])
            except ValueError as error:
                errors[number] = error
                return None

        scores = np.full(len(pairs), np.nan, np.float32)
        numbers = range(len(pairs))
        try:
            for answered in encode_blocks(
                model, numbers, prepare, shapes, window=2 * settings.batch_size
            ):
                scores[answered.numbers] = share_of_yes(answered.vectors)
        except NonFiniteError as error:
            raise ValueError(error.of(name_of(pairs[error.rows[0]][1]))) from error
        return scores, errors

    return score


def share_of_yes(logits: Float32[np.ndarray, "n 2"]) -> Float32[np.ndarray, " n"]:
    """P(yes) / (P(yes) + P(no)) of the logits of yes and no."""
    yes, no = logits.astype(np.float64).T
    share = (1 + np.tanh((yes - no) / 2)) / 2  # the logistic function, without overflow
    return share.astype(np.float32)


def judge_block(work: Work, block: Block, score: Scorer) -> tuple[list[Example], list[BadItem]]:
    """A block's examples with scores and the negatives that are kept, and its bad rows."""
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
    scores, errors = score(pairs) if pairs else (np.zeros(0, np.float32), {})
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
    return judged, bad


def _make_mesh(settings: config.JudgeConfig) -> Mesh:
    """Over the devices of this process."""
    sizes = settings.mesh
    return sharding.make_mesh(sizes.data, sizes.fsdp, sizes.tensor, jax.local_devices())
