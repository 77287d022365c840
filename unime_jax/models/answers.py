"""Logits of a judge's answers: those of a few tokens after the last token of a row or segment."""

import typing
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int

from unime_jax import paths
from unime_jax.batch import Inputs
from unime_jax.models.decoder import SHARED
from unime_jax.models.forward import Encode
from unime_jax.models.pooling import last_states
from unime_jax.models.vlm import Execution, Vlm


def make_answer_logits(
    graph: nnx.GraphDef, execution: Execution, tokens: Sequence[int], *, repetition_penalty: float
) -> Encode:
    """Float32 logits [R, answers] of the token that follows each row of a chunk.

    Of rows of several segments, [R, segments * answers] of the token that follows each of these.

    Args:
      graph: of a `Vlm` whose decoder has a language-model head.
      tokens: a token of each answer.
      repetition_penalty: divides positive logits, and multiplies negative ones, of tokens that the
        row itself has, as transformers' `generate` does; 1: none.
    """

    def logits(
        trainable: paths.Parameters, frozen: paths.Parameters, inputs: Inputs
    ) -> Float32[Array, "R _"]:
        model = typing.cast(Vlm, paths.merge(graph, trainable, frozen))
        answers = jnp.asarray(tokens)
        hidden = model.hidden_states(inputs, execution)
        last = last_states(hidden, inputs.length, inputs.segment_end)
        rows, segments, width = last.shape
        values = model.language_model.logits(last.reshape(rows * segments, width), answers)
        values = values.reshape(rows, segments, -1)
        if repetition_penalty != 1:
            values = penalised(values, occurs(inputs, answers), repetition_penalty)
        return values.reshape(rows, -1)

    return logits


def occurs(inputs: Inputs, tokens: Int[Array, " answers"]) -> Bool[Array, "R segments answers"]:
    """Whether a segment, with the one that all share, has these tokens before its padding."""
    equal = (inputs.tokens[:, :, None] == tokens)[:, None]  # [R, 1, T, answers]
    if inputs.segment is None or inputs.segment_end is None:
        own = (jnp.arange(inputs.tokens.shape[1]) < inputs.length[:, None])[:, None]
    else:
        number = jnp.arange(1, inputs.segment_end.shape[1] + 1)[:, None]
        segment = inputs.segment[:, None]
        own = (segment == SHARED) | (segment == number)
    return (equal & own[..., None]).any(axis=2)


def penalised(
    logits: Float[Array, "*any"], repeated: Bool[Array, "*any"], penalty: float
) -> Float[Array, "*any"]:
    """Logits after transformers' repetition penalty."""
    lower = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return jnp.where(repeated, lower, logits)
