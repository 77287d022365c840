"""SigLIP 2's tower for images of any aspect (NaFlex): learned positions, resized to each image."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from unime_jax.models import precision, scan
from unime_jax.models.layers import Embedding, LayerNorm, Linear
from unime_jax.models.pooling_head import PoolingHead
from unime_jax.models.vit import Encoder, VisionConfig
from unime_jax.models.vlm import Execution


class Embeddings(nnx.Module):
    """Patch projection plus a square grid of learned positions, resized to an image's grid."""

    def __init__(self, config: VisionConfig, *, key: jax.Array):
        patch, position = jax.random.split(key)
        width, values = config.hidden_size, 3 * config.patch_size**2
        self.patch_embedding = Linear(values, width, bias=True, key=patch)
        self.position_embedding = Embedding(config.side**2, width, key=position)
        self.side = config.side

    def __call__(
        self, patches: Float[Array, "tiles P F"], position: Int[Array, "tiles P 3"]
    ) -> Float[Array, "tiles P width"]:
        """`position`: as `Row.patch_position`. Values of a patch are as (channel, y, x)."""
        # The checkpoint's kernel is of values as (y, x, channel).
        x = patches.reshape(*patches.shape[:2], 3, -1).swapaxes(2, 3).reshape(patches.shape)
        rows, columns = (self._weights(position[..., axis]) for axis in (1, 2))
        weights = (rows[..., :, None] * columns[..., None, :]).reshape(*x.shape[:2], -1)
        table = self.position_embedding.embedding[...].astype(jnp.float32)
        resized = jnp.matmul(weights, table, precision=precision.of(table.dtype))
        return self.patch_embedding(x) + resized.astype(x.dtype)

    def _weights(self, index: Int[Array, "tiles P"]) -> Float[Array, "tiles P side"]:
        """Of the grid's places along an axis, for each patch: bilinear, antialiased.

        A triangle around the patch's place in the grid, as wide as the patches stand apart there,
        or the grid's own places.
        """
        apart = self.side / (jnp.max(index, axis=1, keepdims=True) + 1)[..., None]
        apart = jnp.where(jnp.isfinite(apart), apart, 1)  # an empty tile
        center = (jnp.maximum(index, 0)[..., None] + 0.5) * apart - 0.5
        distance = jnp.abs(jnp.arange(self.side) - center) / jnp.maximum(apart, 1)
        weights = jnp.maximum(1 - distance, 0)
        return weights / jnp.sum(weights, axis=-1, keepdims=True)


class FlexibleTower(nnx.Module):
    """A vector of each tile, of the patches that are filled; they come first."""

    def __init__(self, config: VisionConfig, *, key: jax.Array):
        embeddings, encoder, head = jax.random.split(key, 3)
        self.embeddings = Embeddings(config, key=embeddings)
        self.encoder = Encoder(config, key=encoder)
        self.post_layernorm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.head = PoolingHead(config, key=head)

    @jax.named_scope("vision_tower")
    def pooled(
        self,
        patches: Float[Array, "tiles P F"],
        position: Int[Array, "tiles P 3"],
        execution: Execution,
    ) -> Float[Array, "tiles width"]:
        """Vectors of normalised pixel patches."""
        length = jnp.sum(position[..., 0] >= 0, axis=1)
        x = scan.run(
            self.encoder.layers,
            lambda layer, x: layer(x, execution.attention, length=length),
            self.embeddings(patches, position),
            remat=execution.remat,
        )
        return self.head(self.post_layernorm(x), execution.attention, length=length)
