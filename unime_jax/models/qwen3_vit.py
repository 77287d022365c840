"""Qwen3-VL's vision transformer: Qwen2-VL's with learned positions, and states of several layers.

Its grid of positions is resized to that of each image. States after some layers become features
for the decoder's first layers (DeepStack, Meng et al. 2024).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from unime_jax.models import attention, qwen_vit, scan
from unime_jax.models.layers import ACTIVATIONS, Embedding, LayerNorm, Linear
from unime_jax.models.qwen_vit import EPSILON, Attention, QwenVisionConfig, axial_angles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3VisionConfig(QwenVisionConfig):
    """Sizes of the tower.

    `side`: learned positions along an axis. `levels`: layers whose states are features, too,
    ascending, at least one.
    """

    side: int
    levels: tuple[int, ...]


def image_sizes(position: Int[Array, "R N P 3"]) -> Int[Array, "R N 2"]:
    """Height and width in patches of each tile's image, at least 1.

    Of positions as in `Row`, where every image starts a tile: all patches of a tile are one's.
    """
    number = position[:, :, 0, 0]
    last = jnp.max(position[..., 1:], axis=2)  # row and column, [R, N, 2]
    same = (number[:, :, None] == number[:, None, :])[..., None]
    return jnp.maximum(jnp.max(jnp.where(same, last[:, None], -1), axis=2) + 1, 1)


def bilinear_taps(
    index: Int[Array, "*any"], size: Int[Array, "*#any"], side: int
) -> tuple[Int[Array, "*any 2"], Float[Array, "*any 2"]]:
    """Two neighbours in a grid of `side` lines, and their weights, for lines of another grid.

    First and last lines of both grids lie on each other. A place beyond the last has weight 0.
    """
    place = index.astype(jnp.float32) * (side - 1) / jnp.maximum(size - 1, 1).astype(jnp.float32)
    first = jnp.floor(place)
    fraction = place - first
    taps = jnp.stack([first, first + 1], axis=-1).astype(jnp.int32)
    return jnp.clip(taps, 0, side - 1), jnp.stack([1 - fraction, fraction], axis=-1)


class PatchEmbed(qwen_vit.PatchEmbed):
    """Patch projection with a bias."""

    def __init__(self, config: Qwen3VisionConfig, *, key: jax.Array):
        super().__init__(config, key=key)
        self.proj.bias = nnx.Param(jnp.zeros(config.hidden_size))


class PositionEmbedding(Embedding):
    """A square grid of learned positions, resized to the grid of each image."""

    def __init__(self, config: Qwen3VisionConfig, *, key: jax.Array):
        super().__init__(config.side**2, config.hidden_size, key=key)
        self.side = config.side

    @jax.named_scope("positions")
    def resized(
        self, position: Int[Array, "R N P 3"], dtype: jnp.dtype
    ) -> Float[Array, "R N P width"]:
        """The grid at every patch: four places of it, blended in float32."""
        index = jnp.maximum(position[..., 1:], 0)
        taps, weights = bilinear_taps(index, image_sizes(position)[:, :, None], self.side)
        places = taps[..., 0, :, None] * self.side + taps[..., 1, None, :]
        weight = weights[..., 0, :, None] * weights[..., 1, None, :]
        blended = jnp.zeros((*position.shape[:3], self.embedding.shape[1]), jnp.float32)
        for row in range(2):
            for column in range(2):
                vector = self(places[..., row, column], dtype).astype(jnp.float32)
                blended = blended + vector * weight[..., row, column, None]
        return blended.astype(dtype)


class MLP(nnx.Module):
    """Two-layer feed-forward block with biases."""

    def __init__(self, config: Qwen3VisionConfig, *, key: jax.Array):
        up, down = jax.random.split(key)
        width, hidden = config.hidden_size, config.intermediate_size
        self.linear_fc1 = Linear(width, hidden, bias=True, key=up, part="up")
        self.linear_fc2 = Linear(hidden, width, bias=True, key=down)
        self.act = config.hidden_act

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "R patches width"]) -> Float[Array, "R patches width"]:
        return self.linear_fc2(ACTIVATIONS[self.act](self.linear_fc1(x)))


class Block(nnx.Module):
    """Pre-norm residual layer."""

    def __init__(self, config: Qwen3VisionConfig, *, key: jax.Array):
        attention_key, mlp_key = jax.random.split(key)
        self.norm1 = LayerNorm(config.hidden_size, epsilon=EPSILON)
        self.attn = Attention(config, key=attention_key)
        self.norm2 = LayerNorm(config.hidden_size, epsilon=EPSILON)
        self.mlp = MLP(config, key=mlp_key)

    def __call__(
        self,
        x: Float[Array, "R patches width"],
        cos: Float[Array, "R patches 1 head"],
        sin: Float[Array, "R patches 1 head"],
        segment: Int[Array, "R patches"],
        implementation: attention.Implementation,
    ) -> Float[Array, "R patches width"]:
        x = x + self.attn(self.norm1(x), cos, sin, segment, implementation)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """Neighbouring patches, which follow each other, to one token of the decoder's width.

    The norm is over each patch or, with `joined`, over all patches of a token side by side.
    """

    def __init__(self, config: Qwen3VisionConfig, *, joined: bool, key: jax.Array):
        first, second = jax.random.split(key)
        self.merged = config.merge**2
        width = config.hidden_size * self.merged
        self.norm = LayerNorm(width if joined else config.hidden_size, epsilon=EPSILON)
        self.linear_fc1 = Linear(width, width, bias=True, key=first)
        self.linear_fc2 = Linear(width, config.output_size, bias=True, key=second)
        self.joined = joined

    @jax.named_scope("merger")
    def __call__(self, x: Float[Array, "R patches width"]) -> Float[Array, "R V D"]:
        """V = patches / merge**2 tokens; token g is made of patches g * merge**2 and on."""
        rows, patches, width = x.shape
        tokens = rows, patches // self.merged, self.merged * width
        x = self.norm(x.reshape(tokens)) if self.joined else self.norm(x).reshape(tokens)
        return self.linear_fc2(ACTIVATIONS["gelu"](self.linear_fc1(x)))


class Qwen3VisionTower(nnx.Module):
    """States of patches, and the mergers that make tokens of the decoder of them."""

    def __init__(self, config: Qwen3VisionConfig, *, key: jax.Array):
        patch, positions, blocks, merger, mergers = jax.random.split(key, 5)
        self.patch_embed = PatchEmbed(config, key=patch)
        self.pos_embed = PositionEmbedding(config, key=positions)
        self.blocks = scan.stack(lambda k: Block(config, key=k), config.num_layers, blocks)
        self.merger = PatchMerger(config, joined=False, key=merger)
        self.deepstack_merger_list = scan.stack(
            lambda k: PatchMerger(config, joined=True, key=k), len(config.levels), mergers
        )
        self.levels = config.levels
        self.head_dim = config.hidden_size // config.num_heads
        self.rope_theta = config.rope_theta

    @jax.named_scope("vision_tower")
    def __call__(
        self,
        patches: Float[Array, "R N P F"],
        position: Int[Array, "R N P 3"],
        *,
        remat: scan.Remat,
        implementation: attention.Implementation,
    ) -> Float[Array, "states R patches width"]:
        """States of normalised patches after each of `levels`, and after the last layer.

        `position` is (number of the image, row, column), see `Row`; every image starts a tile.
        Patches that fill a tile up have an image number of their own and give finite states of no
        meaning.
        """
        rows, tiles, count, values = patches.shape
        x = self.patch_embed(patches.reshape(rows, tiles * count, values))
        x = x + self.pos_embed.resized(position, x.dtype).reshape(x.shape)
        flat = position.reshape(rows, tiles * count, 3)
        cos, sin = axial_angles(flat[:, :, 1:], self.head_dim, self.rope_theta)
        return scan.run_levels(
            self.blocks,
            lambda block, x: block(x, cos, sin, flat[:, :, 0], implementation),
            x,
            remat=remat,
            levels=self.levels,
        )

    def deepstack(self, states: Float[Array, "levels R patches width"]) -> tuple[jax.Array, ...]:
        """Features of image tokens, [R, V, D], of each level."""
        merge = jax.lax.scan(  # one program for all, whatever their number
            lambda _, level: (None, level[0](level[1])), None, (self.deepstack_merger_list, states)
        )
        return tuple(merge[1])
