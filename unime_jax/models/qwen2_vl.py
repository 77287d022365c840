"""Qwen2-VL and Qwen2.5-VL: a tower over images in their own size, and a decoder with M-RoPE."""

import dataclasses

import jax
from jaxtyping import Array, Int, UInt8

from unime_jax.models.decoder import Decoder, DecoderConfig
from unime_jax.models.qwen_vit import QwenVisionConfig, QwenVisionTower
from unime_jax.models.vlm import Execution, Pixels, TowerFeatures, VisionFeatures, Vlm, normalise


@dataclasses.dataclass(frozen=True)
class Qwen2VlConfig:
    """Configuration of a checkpoint, read from its Hugging Face configuration files."""

    text: DecoderConfig
    vision: QwenVisionConfig
    pixels: Pixels


class Qwen2Vl(Vlm):
    """Qwen2-VL or Qwen2.5-VL. A tile is a run of patches; image shapes are data."""

    def __init__(self, config: Qwen2VlConfig, *, key: jax.Array):
        tower, decoder = jax.random.split(key)
        self.visual = QwenVisionTower(config.vision, key=tower)
        self.language_model = Decoder(config.text, key=decoder)
        self.pixels = config.pixels

    def tower_features(
        self,
        patches: UInt8[Array, "R N P F"],
        position: Int[Array, "R N P 3"] | None,
        execution: Execution,
    ) -> TowerFeatures:
        """[R, N * P, width] of the tower, whose patches see those of all tiles of a row."""
        assert position is not None, "the family's layout is `positioned`"
        rows, tiles, count, values = patches.shape
        x = normalise(patches, self.pixels).astype(execution.dtype)
        x = self.visual(
            x.reshape(rows, tiles * count, values),
            position.reshape(rows, tiles * count, 3),
            remat=execution.remat,
            implementation=execution.attention,
        )
        return TowerFeatures((x,))

    def project(self, features: TowerFeatures, execution: Execution) -> VisionFeatures:
        """Row g of the table is the token merged of the g-th patches of all tiles of a row."""
        (x,) = features.levels
        return VisionFeatures(self.visual.merger(x))
