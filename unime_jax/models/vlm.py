"""Vision-language embedding models: integer inputs to unit vectors.

All shapes that depend on an image were decided on the host: `slot` numbers the row of an item's
image-token table that each token takes, so the graph here is static.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from unime_jax.batch import Inputs
from unime_jax.models import attention, precision, scan
from unime_jax.models.decoder import Decoder
from unime_jax.models.pooling import last_states, unit_norm


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Pixel values of bytes are (byte * scale - mean) / std, by channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float


@dataclasses.dataclass(frozen=True)
class Execution:
    """Execution of a forward; it changes results by rounding alone.

    `dtype`: of activations, and with it the precision of products: float32 is multiplied as
    float32, even where a platform's default is less (`models.precision`).
    """

    dtype: jnp.dtype
    remat: scan.Remat
    attention: attention.Implementation


class TowerFeatures(NamedTuple):
    """Features of all tiles of the rows of a chunk, as they come out of a family's tower.

    `levels`: of the tower's layers that the family reads; one array, or several (DeepStack).
    """

    levels: tuple[Float[Array, "R ..."], ...]


class VisionFeatures(NamedTuple):
    """Image features of the rows of a chunk.

    `table`: the vectors that each row's image tokens choose from, see `Row.slot`. `deepstack[i]`,
    chosen alike, is added to the decoder's states of image tokens after layer i (DeepStack).
    """

    table: Float[Array, "R V D"]
    deepstack: tuple[Float[Array, "R V D"], ...] = ()


# `Inputs.vision` of a chunk with patches.
VisionStage = Callable[[Inputs, Execution], TowerFeatures | VisionFeatures]


class EmbeddingModel(nnx.Module):
    """Rows to vectors: the interface of every backbone's model."""

    def __call__(self, inputs: Inputs, execution: Execution) -> Float[Array, "R D"]:
        """Unit-norm float32 embeddings of the rows of one chunk (`Inputs` without its C axis).

        Rows that are padding give a finite vector of no meaning.
        """
        raise NotImplementedError

    @property
    def pack_tokens(self) -> int:
        """Tokens of a row, at most, that may hold several texts; 0: it cannot, as each has one."""
        return 0

    def vision_stages(self) -> Sequence[VisionStage]:
        """Functions that make `Inputs.vision` of a chunk with patches.

        Each goes on from the one before and reads more parameters. None: the model reads patches
        alone.
        """
        return ()


class Vlm(EmbeddingModel):
    """A vision-language model used as an embedder, or with a language-model head as a judge.

    A family's class has `language_model`, its tower's `tower_features`, and `project`, which makes
    image tokens of them.
    """

    language_model: Decoder

    def tower_features(
        self,
        patches: UInt8[Array, "R N P F"],
        position: Int[Array, "R N P 3"] | None,
        execution: Execution,
    ) -> TowerFeatures:
        """Features of all tiles of each row, before anything that maps them to tokens."""
        raise NotImplementedError

    def project(self, features: TowerFeatures, execution: Execution) -> VisionFeatures:
        """Image tokens of each row from the tower's features."""
        raise NotImplementedError

    def vision_features(
        self,
        patches: UInt8[Array, "R N P F"],
        position: Int[Array, "R N P 3"] | None,
        execution: Execution,
    ) -> VisionFeatures:
        """Image tokens of all tiles of each row."""
        return self.project(self.tower_features(patches, position, execution), execution)

    def vision_stages(self) -> Sequence[VisionStage]:
        """The tower, then the tower and the projector."""
        return (
            lambda i, e: self.tower_features(i.patches, i.patch_position, e),
            lambda i, e: self.vision_features(i.patches, i.patch_position, e),
        )

    @property
    def pack_tokens(self) -> int:
        return self.language_model.pack_tokens

    def __call__(self, inputs: Inputs, execution: Execution) -> Float[Array, "_ D"]:
        """The last real token's state, scaled to length one.

        Of rows of several texts, [R * segments, D]: that of each text.
        """
        return unit_norm(self.last_state(inputs, execution))

    def last_state(self, inputs: Inputs, execution: Execution) -> Float[Array, "_ D"]:
        """The last real token's state, of each text."""
        hidden = self.hidden_states(inputs, execution)
        states = last_states(hidden, inputs.length, inputs.segment_end)
        return states.reshape(-1, states.shape[-1])

    def hidden_states(self, inputs: Inputs, execution: Execution) -> Float[Array, "R T D"]:
        """Hidden states after the final norm, unless the decoder is without it.

        Padded positions hold values of no meaning.
        """
        x = self.language_model.embed_tokens(inputs.tokens, execution.dtype)
        deepstack = []
        vision = self._vision_of(inputs, execution)
        if vision is not None:
            slots = inputs.slot, inputs.slot_weight
            x = merge_image_tokens(x, vision.table, *slots)
            nothing = jnp.zeros_like(x)
            deepstack = [merge_image_tokens(nothing, level, *slots) for level in vision.deepstack]
        return self.language_model(
            x,
            inputs.positions,
            remat=execution.remat,
            implementation=execution.attention,
            length=inputs.length,
            deepstack=deepstack,
            segment=inputs.segment,
            shares_prefix=inputs.segment_live is None,
        )

    def _vision_of(self, inputs: Inputs, execution: Execution) -> VisionFeatures | None:
        """Image tokens of a chunk, from where its inputs start; None: it has no images."""
        if isinstance(inputs.vision, VisionFeatures):
            return inputs.vision
        if isinstance(inputs.vision, TowerFeatures):
            return self.project(inputs.vision, execution)
        if inputs.patches is None:
            return None
        return self.vision_features(inputs.patches, inputs.patch_position, execution)


class LanguageModel(Vlm):
    """The language component of a `Vlm` alone, for texts."""

    def __init__(self, language_model: Decoder):
        self.language_model = language_model


def normalise(patches: UInt8[Array, "*any F"], pixels: Pixels) -> Float[Array, "*any F"]:
    """Pixel values of bytes as the image processor computes them, float32; channels come first."""
    per_channel = patches.shape[-1] // 3
    mean, std = (jnp.repeat(jnp.asarray(x), per_channel) for x in (pixels.mean, pixels.std))
    return (patches.astype(jnp.float32) * pixels.scale - mean) / std


@jax.named_scope("image_tokens")
def merge_image_tokens(
    x: Float[Array, "R T D"],
    table: Float[Array, "R V D"],
    slot: Int[Array, "R T S"],
    weight: Float[Array, "R T S"] | None,
) -> Float[Array, "R T D"]:
    """Puts table rows where `slot` names them; -1 keeps the text embedding.

    With S > 1 the named rows are blended by `weight` (features of a shrunk tile map). A row number
    beyond the table gives NaN; the host rules that out.
    """
    rows, tokens, blend = slot.shape
    index = jnp.maximum(slot, 0).reshape(rows, tokens * blend, 1)
    picked = jnp.take_along_axis(table, index, axis=1, mode="fill")
    picked = picked.reshape(rows, tokens, blend, -1)
    if weight is None:
        image = picked[:, :, 0]
    else:
        image = jnp.einsum(
            "rtsd,rts->rtd",
            picked,
            weight.astype(picked.dtype),
            precision=precision.of(picked.dtype),
        )
    return jnp.where(slot[:, :, :1] >= 0, image, x)
