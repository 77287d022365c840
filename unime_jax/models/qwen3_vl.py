"""Qwen3-VL: Qwen2-VL's form, with a tower that the decoder's first layers see several layers of."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt8

from unime_jax.models.decoder import Decoder
from unime_jax.models.qwen2_vl import Qwen2VlConfig
from unime_jax.models.qwen3_vit import Qwen3VisionConfig, Qwen3VisionTower
from unime_jax.models.vlm import Execution, TowerFeatures, VisionFeatures, Vlm, normalise


class Qwen3Vl(Vlm):
    """Qwen3-VL. A tile is a run of patches; image shapes are data."""

    def __init__(self, config: Qwen2VlConfig, *, key: jax.Array):
        assert isinstance(config.vision, Qwen3VisionConfig)
        tower, decoder = jax.random.split(key)
        self.visual = Qwen3VisionTower(config.vision, key=tower)
        self.language_model = Decoder(config.text, key=decoder)
        self.pixels = config.pixels

    def tower_features(
        self,
        patches: UInt8[Array, "R N P F"],
        position: Int[Array, "R N P 3"] | None,
        execution: Execution,
    ) -> TowerFeatures:
        """States of each level and the last layer's, [R, N * P, width] each.

        Patches see those of their own image in all tiles of a row.
        """
        assert position is not None, "the family's layout is `positioned`"
        states = self.visual(
            normalise(patches, self.pixels).astype(execution.dtype),
            position,
            remat=execution.remat,
            implementation=execution.attention,
        )
        return TowerFeatures(tuple(states))

    def project(self, features: TowerFeatures, execution: Execution) -> VisionFeatures:
        """Row g of a table is the token merged of the g-th patches of all tiles of a row."""
        *levels, last = features.levels
        return VisionFeatures(self.visual.merger(last), self.visual.deepstack(jnp.stack(levels)))
