"""The embedder: vision tower, projector and decoder, from integer inputs to unit vectors.

Everything whose shape depends on an image was decided on the host: `slot` says which row of an
example's image-token table each token takes, so the graph here is static.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from unime_jax.batch import Inputs
from unime_jax.models import attention, scan
from unime_jax.models.decoder import Decoder, DecoderConfig
from unime_jax.models.layers import ACTIVATIONS, Linear
from unime_jax.models.pooling import last_token, unit_norm
from unime_jax.models.vit import VisionConfig, VisionTower


@dataclasses.dataclass(frozen=True)
class VlmConfig:
    """Facts of a checkpoint, read from its Hugging Face configuration files."""

    text: DecoderConfig
    vision: VisionConfig
    projector_act: str
    projector_bias: bool
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    pixel_scale: float


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a forward is run; none of it changes what is computed beyond rounding."""

    dtype: jnp.dtype
    remat: scan.Remat
    attention: attention.Implementation


class Projector(nnx.Module):
    """Two-layer map from vision features to token embeddings."""

    def __init__(self, config: VlmConfig, *, key: jax.Array):
        first, second = jax.random.split(key)
        width, bias = config.text.hidden_size, config.projector_bias
        self.linear_1 = Linear(config.vision.hidden_size, width, bias=bias, key=first)
        self.linear_2 = Linear(width, width, bias=bias, key=second)
        self.act = config.projector_act

    def __call__(self, x: Float[Array, "... V"]) -> Float[Array, "... D"]:
        return self.linear_2(ACTIVATIONS[self.act](self.linear_1(x)))


class Vlm(nnx.Module):
    """LLaVA-style vision-language model used as an embedder: no language-model head."""

    def __init__(self, config: VlmConfig, *, key: jax.Array):
        tower, projector, newline, decoder = jax.random.split(key, 4)
        width = config.text.hidden_size
        self.vision_tower = VisionTower(config.vision, key=tower)
        self.multi_modal_projector = Projector(config, key=projector)
        self.image_newline = nnx.Param(jax.random.normal(newline, (width,)) * width**-0.5)
        self.language_model = Decoder(config.text, key=decoder)
        self.config = config

    def __call__(self, inputs: Inputs, execution: Execution) -> Float[Array, "B D"]:
        """Unit-norm float32 embeddings of the rows of one chunk (`Inputs` without its C axis).

        The last real token's state after the final norm is the embedding. Rows of length 0 give
        a finite vector of no meaning.
        """
        hidden = self.hidden_states(inputs, execution)
        return unit_norm(last_token(hidden, inputs.length))

    def hidden_states(self, inputs: Inputs, execution: Execution) -> Float[Array, "B T D"]:
        """Hidden states after the final norm; padded positions hold values of no meaning."""
        x = self.language_model.embed_tokens(inputs.tokens, execution.dtype)
        if inputs.patches is not None:
            table = self.image_table(inputs.patches, execution)
            x = merge_image_tokens(x, table, inputs.slot, inputs.slot_weight)
        return self.language_model(
            x, inputs.positions, remat=execution.remat, implementation=execution.attention
        )

    def image_table(
        self, patches: UInt8[Array, "B I P C"], execution: Execution
    ) -> Float[Array, "B G D"]:
        """Each row's image tokens to choose from: the newline, then I * P projected features."""
        rows, tiles, count, values = patches.shape
        x = self.normalise(patches).reshape(rows * tiles, count, values).astype(execution.dtype)
        x = self.vision_tower(x, remat=execution.remat, implementation=execution.attention)
        x = self.multi_modal_projector(x).reshape(rows, tiles * count, -1)
        newline = jnp.broadcast_to(self.image_newline[...].astype(x.dtype), (rows, 1, x.shape[-1]))
        return jnp.concatenate([newline, x], axis=1)

    def normalise(self, patches: UInt8[Array, "... C"]) -> Float[Array, "... C"]:
        """Bytes to the pixel values that the image processor would have made, float32."""
        per_channel = patches.shape[-1] // 3
        mean = jnp.repeat(jnp.asarray(self.config.pixel_mean), per_channel)
        std = jnp.repeat(jnp.asarray(self.config.pixel_std), per_channel)
        return (patches.astype(jnp.float32) * self.config.pixel_scale - mean) / std


def merge_image_tokens(
    x: Float[Array, "B T D"],
    table: Float[Array, "B G D"],
    slot: Int[Array, "B T S"],
    weight: Float[Array, "B T S"] | None,
) -> Float[Array, "B T D"]:
    """Puts table rows where `slot` names them; -1 keeps the text embedding.

    With S > 1 the named rows are blended by `weight` (features of a shrunk tile map).
    """
    rows, tokens, blend = slot.shape
    index = jnp.maximum(slot, 0).reshape(rows, tokens * blend, 1)
    picked = jnp.take_along_axis(table, index, axis=1).reshape(rows, tokens, blend, -1)
    if weight is None:
        image = picked[:, :, 0]
    else:
        image = jnp.einsum("btsd,bts->btd", picked, weight.astype(picked.dtype))
    return jnp.where(slot[:, :, :1] >= 0, image, x)
