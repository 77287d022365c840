"""The model of job judge: its question, the rows of pairs, and scores of pairs by the answers.

Prompts of one query begin alike, and what they begin with is encoded once (`data.shared_prefix`).
"""

import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Float32

from unime_jax import backbones, config, sharding
from unime_jax.backbones.preprocessing import judge_prompt
from unime_jax.backbones.preprocessing.judge_prompt import JudgePrompt
from unime_jax.backbones.preprocessing.open_prompts import open_tokenizer
from unime_jax.backbones.preprocessing.prompts import Prompt, name_of
from unime_jax.batch import Item, Row
from unime_jax.data import inference_shapes, shared_prefix
from unime_jax.data.ahead import map_ahead
from unime_jax.data.inference_batches import Shapes, sized
from unime_jax.data.shapes import Layout
from unime_jax.data.shared_rows import Prepared
from unime_jax.inference.encode import Model, NonFiniteError, encode_rows
from unime_jax.models.answers import make_answer_logits
from unime_jax.models.inference import default_execution, targets

CANDIDATES = 32  # of one query in a row, at most: one program whatever a row has
PATCHES = 8192  # of such a row, at most, where a tower attends over all of them at once
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


class Scored(NamedTuple):
    """Scores of pairs, NaN where there is an error instead; and what they cost."""

    scores: Float32[np.ndarray, " n"]
    errors: dict[int, ValueError]  # by number of the pair
    tokens: int  # of the rows that were encoded
    tokens_alone: int  # of a row for each pair


Scorer = Callable[[Sequence[Pair]], Scored]


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
    own = backbone.preprocess.prompt
    assert isinstance(own, Prompt), "a family with a head has chat prompts"
    wording = worded(settings.judging)
    prompt, whole = judge_prompt.open_judge_prompt(backbone.folder, tokenizer, own, wording)
    return Judge(
        backbone=backbone,
        prompt=prompt,
        preprocess=backbone.lm_head.preprocess(whole),
        max_length=whole.max_length,
        answers=judge_prompt.answer_tokens(tokenizer, wording.answers),
    )


def worded(judging: config.JudgingConfig) -> judge_prompt.Wording:
    """The words of the prompt that is asked for, its own where the config names none."""
    published = judge_prompt.PROMPTS[judging.prompt]
    yes, no = published.answers
    return dataclasses.replace(
        published,
        instruction=published.instruction if judging.instruction is None else judging.instruction,
        answers=(judging.yes or yes, judging.no or no),
    )


def shares_prefix(settings: config.JudgeConfig, judge: Judge) -> bool:
    """Whether prompts of one query share rows; a log line says so where it is asked in vain."""
    assert judge.backbone.lm_head is not None
    reason = judge.backbone.lm_head.unshared
    if settings.judging.share_prefix and reason:
        logging.warning(
            "config.judging.share_prefix: each prompt is encoded whole, as %s cannot share what"
            " prompts begin with: %s",
            judge.backbone.base,
            reason,
        )
    return settings.judging.share_prefix and not reason


def make_scorer(settings: config.JudgeConfig, judge: Judge) -> Scorer:
    """Reads the weights; a function from pairs to scores. Those of one query follow each other."""
    dtype, mesh = jnp.dtype(settings.dtype), make_mesh(settings)
    graph, wanted = targets(judge.backbone.make_model, mesh, dtype)
    logits = make_answer_logits(
        graph,
        default_execution(dtype),
        judge.answers,
        repetition_penalty=settings.judging.repetition_penalty,
    )
    model = Model(logits, ({}, judge.backbone.load(wanted)), mesh)
    layout = judge.backbone.layout
    if shares_prefix(settings, judge):
        layout = dataclasses.replace(layout, segments=CANDIDATES)
    shapes: Shapes = inference_shapes.shapes_of(
        layout,
        shards=sharding.row_shards(mesh),
        batch_size=settings.batch_size,
        max_length=judge.max_length,
    )

    def score(pairs: Sequence[Pair]) -> Scored:
        rows = _Rows(judge, pairs, layout, shapes, ahead=2 * settings.batch_size)
        scores = np.full(len(pairs), np.nan, np.float32)
        try:
            for answered in encode_rows(
                model, rows.prepared(), [range(len(pairs))], shapes, each=2 * settings.batch_size
            ):
                count = len(answered.numbers), max(layout.segments, 1), 2
                shares = share_of_yes(answered.vectors.reshape(count))
                for number, share in zip(answered.numbers.tolist(), shares, strict=True):
                    members = rows.members[number]
                    scores[list(members)] = share[: len(members)]
        except NonFiniteError as error:
            raise ValueError(error.of(name_of(pairs[error.rows[0]][1]))) from error
        return Scored(scores, rows.errors, rows.tokens, rows.tokens_alone)

    return score


class _Rows:
    """Rows of pairs as they are made: a row is numbered as its first pair.

    Attributes:
      members: numbers of the pairs of each row, by the row's number.
      errors: of pairs that cannot be made rows.
    """

    def __init__(
        self, judge: Judge, pairs: Sequence[Pair], layout: Layout, shapes: Shapes, *, ahead: int
    ):
        self._judge, self._pairs, self._ahead = judge, pairs, ahead
        self._layout, self._shapes = layout, shapes
        self.members: dict[int, tuple[int, ...]] = {}
        self.errors: dict[int, ValueError] = {}
        self.tokens = self.tokens_alone = 0

    def prepared(self) -> Generator[Prepared, None, None]:
        """Each pair's number, with a row or left out, in order; threads work ahead."""

        def prepare(number: int) -> Row | ValueError:
            try:
                return self._judge.row(self._pairs[number])
            except ValueError as error:
                return error

        made = map_ahead(prepare, range(len(self._pairs)), ahead=self._ahead)
        try:
            for numbers in _of_query(self._pairs):
                rows: dict[int, Row] = {}
                for number in numbers:
                    row = next(made)
                    if isinstance(row, ValueError):
                        self.errors[number] = row
                    else:
                        rows[number] = row
                packed = self._packed(rows)
                for number in numbers:
                    yield sized(number, packed.get(number), self._shapes)
        finally:
            made.close()

    def _packed(self, rows: dict[int, Row]) -> dict[int, Row]:
        """The rows of one query's pairs, by number, as those that are encoded."""
        numbers = list(rows)
        packed = rows
        if self._layout.segments:
            packs = shared_prefix.pack(
                list(rows.values()),
                self._layout,
                max_tokens=self._judge.max_length,
                max_patches=PATCHES,
            )
            members = [tuple(numbers[i] for i in pack.numbers) for pack in packs]
            self.members |= {own[0]: own for own in members}
            packed = {own[0]: pack.row for own, pack in zip(members, packs, strict=True)}
        else:
            self.members |= {number: (number,) for number in numbers}
        self.tokens += sum(len(row.tokens) for row in packed.values())
        self.tokens_alone += sum(len(row.tokens) for row in rows.values())
        return packed


def _of_query(pairs: Sequence[Pair]) -> Iterator[range]:
    """Numbers of consecutive pairs with one query."""
    start = 0
    for number in range(1, len(pairs) + 1):
        if number == len(pairs) or pairs[number][0].identity != pairs[start][0].identity:
            yield range(start, number)
            start = number


def share_of_yes(logits: Float32[np.ndarray, "*n 2"]) -> Float32[np.ndarray, "*n"]:
    """P(yes) / (P(yes) + P(no)) of the logits of yes and no, the logistic of their difference."""
    yes, no = np.moveaxis(logits.astype(np.float64), -1, 0)
    share = (1 + np.tanh((yes - no) / 2)) / 2  # without overflow
    return share.astype(np.float32)


def make_mesh(settings: config.JudgeConfig) -> Mesh:
    """Over the devices of this process."""
    sizes = settings.mesh
    return sharding.make_mesh(sizes.data, sizes.fsdp, sizes.tensor, jax.local_devices())
