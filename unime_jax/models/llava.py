"""LLaVA: a plain vision transformer over tiles, a two-layer projector and a decoder."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from unime_jax.models.decoder import Decoder, DecoderConfig
from unime_jax.models.layers import ACTIVATIONS, Linear
from unime_jax.models.vit import VisionConfig, VisionTower
from unime_jax.models.vlm import Execution, Pixels, TowerFeatures, VisionFeatures, Vlm, normalise


@dataclasses.dataclass(frozen=True)
class LlavaConfig:
    """Configuration of a checkpoint, read from its Hugging Face configuration files."""

    text: DecoderConfig
    vision: VisionConfig
    projector_act: str
    projector_bias: bool
    pixels: Pixels


class Projector(nnx.Module):
    """Two-layer map from vision features to token embeddings."""

    def __init__(self, config: LlavaConfig, *, key: jax.Array):
        first, second = jax.random.split(key)
        width, bias = config.text.hidden_size, config.projector_bias
        self.linear_1 = Linear(config.vision.hidden_size, width, bias=bias, key=first)
        self.linear_2 = Linear(width, width, bias=bias, key=second)
        self.act = config.projector_act

    @jax.named_scope("projector")
    def __call__(self, x: Float[Array, "*any in"]) -> Float[Array, "*any D"]:
        return self.linear_2(ACTIVATIONS[self.act](self.linear_1(x)))


class Llava(Vlm):
    """LLaVA-NeXT and LLaVA-OneVision; they differ in their tower, their decoder and the host."""

    def __init__(self, config: LlavaConfig, *, key: jax.Array):
        tower, projector, newline, decoder = jax.random.split(key, 4)
        width = config.text.hidden_size
        self.vision_tower = VisionTower(config.vision, key=tower)
        self.multi_modal_projector = Projector(config, key=projector)
        self.image_newline = nnx.Param(jax.random.normal(newline, (width,)) * width**-0.5)
        self.language_model = Decoder(config.text, key=decoder)
        self.pixels = config.pixels

    def tower_features(
        self,
        patches: UInt8[Array, "R N P F"],
        position: Int[Array, "R N P 3"] | None,
        execution: Execution,
    ) -> TowerFeatures:
        """[R, N, P, width] of the tower.

        Patches whose `position` is negative are zeros, which no bytes normalise to.
        """
        rows, tiles, count, values = patches.shape
        x = normalise(patches, self.pixels).astype(execution.dtype)
        if position is not None:
            x = jnp.where(position[..., :1] >= 0, x, 0)
        x = self.vision_tower(
            x.reshape(rows * tiles, count, values),
            remat=execution.remat,
            implementation=execution.attention,
        )
        return TowerFeatures((x.reshape(rows, tiles, count, -1),))

    def project(self, features: TowerFeatures, execution: Execution) -> VisionFeatures:
        """Row 0 of the table is the newline, row 1 + n * P + p that of patch p of tile n."""
        (x,) = features.levels
        rows, tiles, count, width = x.shape
        x = self.multi_modal_projector(x.reshape(rows * tiles, count, width))
        x = x.reshape(rows, tiles * count, -1)
        newline = jnp.broadcast_to(self.image_newline[...].astype(x.dtype), (rows, 1, x.shape[-1]))
        return VisionFeatures(jnp.concatenate([newline, x], axis=1))
