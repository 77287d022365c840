"""The model of job judge: its question, its answers, and scores of pairs by them."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from unime_jax import backbones, config, sharding
from unime_jax.backbones.preprocessing import judge_prompt
from unime_jax.backbones.preprocessing.judge_prompt import JudgePrompt
from unime_jax.backbones.preprocessing.prompts import Prompt, name_of, open_tokenizer
from unime_jax.batch import Item, Row
from unime_jax.data import inference_shapes
from unime_jax.data.inference_batches import Shapes
from unime_jax.encode import Model, NonFiniteError, encode_blocks
from unime_jax.models.answers import make_answer_logits
from unime_jax.models.inference import default_execution, targets

Pair = tuple[Item, Item]  # a query and a candidate
Scorer = Callable[[Sequence[Pair]], tuple[Float32[np.ndarray, " n"], dict[int, ValueError]]]


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


def make_scorer(settings: config.JudgeConfig, judge: Judge) -> Scorer:
    """Reads the weights; a function from pairs to scores, NaN where there is an error instead."""
    dtype, mesh = jnp.dtype(settings.dtype), make_mesh(settings)
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


def make_mesh(settings: config.JudgeConfig) -> Mesh:
    """Over the devices of this process."""
    sizes = settings.mesh
    return sharding.make_mesh(sizes.data, sizes.fsdp, sizes.tensor, jax.local_devices())
