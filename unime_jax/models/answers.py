"""Logits of a judge's answers: those of a few tokens after the last token of a row."""

import typing
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int

from unime_jax import paths
from unime_jax.batch import Inputs
from unime_jax.models.forward import Encode
from unime_jax.models.vlm import Execution, Vlm


def make_answer_logits(
    graph: nnx.GraphDef, execution: Execution, tokens: Sequence[int], *, repetition_penalty: float
) -> Encode:
    """Float32 logits [R, answers] of the token that follows each row of a chunk.

    Args:
      graph: of a `Vlm` whose decoder has a language-model head.
      tokens: a token of each answer.
      repetition_penalty: divides positive logits, and multiplies negative ones, of tokens that the
        row itself has, as transformers' `generate` does; 1: none.
    """

    def logits(
        trainable: paths.Parameters, frozen: paths.Parameters, inputs: Inputs
    ) -> Float32[Array, "R answers"]:
        model = typing.cast(Vlm, paths.merge(graph, trainable, frozen))
        answers = jnp.asarray(tokens)
        values = model.language_model.logits(model.last_state(inputs, execution), answers)
        if repetition_penalty == 1:
            return values
        return penalised(values, occurs(inputs.tokens, inputs.length, answers), repetition_penalty)

    return logits


def occurs(
    row: Int[Array, "R T"], length: Int[Array, " R"], tokens: Int[Array, " answers"]
) -> Bool[Array, "R answers"]:
    """Whether a row has these tokens before its padding."""
    real = jnp.arange(row.shape[1]) < length[:, None]
    return ((row[:, :, None] == tokens) & real[:, :, None]).any(axis=1)


def penalised(
    logits: Float[Array, "R answers"], repeated: Bool[Array, "R answers"], penalty: float
) -> Float[Array, "R answers"]:
    """Logits after transformers' repetition penalty."""
    lower = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return jnp.where(repeated, lower, logits)
