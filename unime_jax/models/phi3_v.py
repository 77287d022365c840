"""Phi-3.5-Vision: CLIP features of crops and a global view, merged by fours, and a decoder."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from unime_jax.models.decoder import Decoder, DecoderConfig
from unime_jax.models.global_view import fill_global_views
from unime_jax.models.layers import ACTIVATIONS, Linear
from unime_jax.models.vit import VisionConfig, VisionTower
from unime_jax.models.vlm import Execution, Pixels, TowerFeatures, VisionFeatures, Vlm, normalise

MERGE = 2  # MERGE x MERGE patches become one token


@dataclasses.dataclass(frozen=True)
class Phi3VConfig:
    """Configuration of a checkpoint, read from its configuration files."""

    text: DecoderConfig
    vision: VisionConfig
    pixels: Pixels


class Projector(nnx.Module):
    """Two-layer map from merged patches to token embeddings."""

    def __init__(self, features: int, width: int, *, key: jax.Array):
        first, second = jax.random.split(key)
        self.linear_1 = Linear(features, width, bias=True, key=first)
        self.linear_2 = Linear(width, width, bias=True, key=second)

    def __call__(self, x: Float[Array, "*any in"]) -> Float[Array, "*any D"]:
        return self.linear_2(ACTIVATIONS["gelu"](self.linear_1(x)))


class Phi3V(Vlm):
    """Phi-3.5-Vision. The separators between tokens are vectors of four patches' width."""

    def __init__(self, config: Phi3VConfig, *, key: jax.Array):
        tower, projector, line, image, decoder = jax.random.split(key, 5)
        width = MERGE**2 * config.vision.hidden_size
        self.vision_tower = VisionTower(config.vision, key=tower)
        self.multi_modal_projector = Projector(width, config.text.hidden_size, key=projector)
        # The checkpoint's own names and shapes: after a line of tokens, and after the crops.
        self.sub_GN = nnx.Param(jax.random.normal(line, (1, 1, 1, width)))
        self.glb_GN = nnx.Param(jax.random.normal(image, (1, 1, width)))
        self.language_model = Decoder(config.text, key=decoder)
        self.pixels = config.pixels

    def tower_features(
        self,
        patches: UInt8[Array, "R N P F"],
        position: Int[Array, "R N P 3"] | None,
        execution: Execution,
    ) -> TowerFeatures:
        """[R, N, P, width] of the tower.

        `position` marks the tiles of global views, which are filled here, see `fill_global_views`.
        """
        assert position is not None, "the family's layout is `positioned`"
        rows, tiles, count, values = patches.shape
        x = fill_global_views(normalise(patches, self.pixels), position).astype(execution.dtype)
        x = self.vision_tower(
            x.reshape(rows * tiles, count, values),
            remat=execution.remat,
            implementation=execution.attention,
        )
        return TowerFeatures((x.reshape(rows, tiles, count, -1),))

    def project(self, features: TowerFeatures, execution: Execution) -> VisionFeatures:
        """Row 0 of the table ends a line, row 1 the crops; then P / 4 rows a tile, line by line."""
        (x,) = features.levels
        rows, tiles, count, width = x.shape
        side = math.isqrt(count) // MERGE
        x = x.reshape(rows, tiles * side, MERGE, side, MERGE, width).swapaxes(2, 3)
        x = x.reshape(rows, tiles * side**2, MERGE**2 * width)
        separators = [s[...].reshape(1, 1, -1).astype(x.dtype) for s in (self.sub_GN, self.glb_GN)]
        separators = [jnp.broadcast_to(s, (rows, 1, x.shape[-1])) for s in separators]
        table = self.multi_modal_projector(jnp.concatenate([*separators, x], axis=1))
        return VisionFeatures(table)
