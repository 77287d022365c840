"""The vision transformers of Qwen2-VL and Qwen2.5-VL: images of any size.

Patches attend to those of their image or, in most layers of Qwen2.5-VL, of their window of it.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from unime_jax.models import attention, rope, scan
from unime_jax.models.layers import ACTIVATIONS, LayerNorm, Linear, RMSNorm
from unime_jax.models.vit import MLP

EPSILON = 1e-6  # of every norm; no configuration file says it
NORMS: dict[str, type[LayerNorm | RMSNorm]] = {"layer": LayerNorm, "rms": RMSNorm}
SPAN = 2**10  # windows along a side of an image, at most


@dataclasses.dataclass(frozen=True)
class QwenVisionConfig:
    """Sizes of the tower, and the kind of its layers.

    `frames`: images that a patch spans in time. `merge`: merge x merge patches become one token.
    `gated`: of the MLPs. `window`: patches along a side of a window, which follow each other in a
    row; 0: there are none. `full_layers`: those that attend over the whole image all the same.
    `longest`: patches of an image or of a clip's time step, at most; 0: nobody knows.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    output_size: int
    patch_size: int
    frames: int
    merge: int
    hidden_act: str
    rope_theta: float
    norm: Literal["layer", "rms"] = "layer"
    gated: bool = False
    window: int = 0
    full_layers: tuple[int, ...] = ()
    longest: int = 0


def axial_angles(
    rows_columns: Int[Array, "R patches 2"], head_dim: int, theta: float
) -> tuple[Float[Array, "R patches 1 head"], Float[Array, "R patches 1 head"]]:
    """Cosine and sine for `rope.rotate` by row and column (Qwen2-VL, section 2.1), float32.

    The first half of the frequencies turns with the row, the second with the column; other than
    the sections of M-RoPE, each half is the full range of frequencies.
    """
    count = head_dim // 4
    frequency = theta ** -(jnp.arange(count, dtype=jnp.float32) / count)
    angle = rows_columns.astype(jnp.float32)[..., None] * frequency
    angle = angle.reshape(*rows_columns.shape[:2], 2 * count)
    angle = jnp.concatenate([angle, angle], axis=-1)[:, :, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def windows(position: Int[Array, "R patches 3"], side: int) -> Int[Array, "R patches"]:
    """Number of the window of each patch, from (number of the image, row, column).

    Windows are side x side patches, at an image's lower and right edge what is left of them.
    """
    image, row, column = jnp.moveaxis(position, 2, 0)
    return (image * SPAN + row // side) * SPAN + column // side


class PatchEmbed(nnx.Module):
    """Patch projection, a convolution over time, height and width whose stride is its size."""

    def __init__(self, config: QwenVisionConfig, *, key: jax.Array):
        values = 3 * config.frames * config.patch_size**2
        self.proj = Linear(values, config.hidden_size, bias=False, key=key)
        self.frames = config.frames

    def __call__(
        self, patches: Float[Array, "R patches pixels"]
    ) -> Float[Array, "R patches width"]:
        """Patches flattened as (channel, frame, y, x); one frame, a still image, is repeated."""
        rows, count, values = patches.shape
        if values == self.proj.kernel.shape[0]:
            return self.proj(patches)
        x = patches.reshape(rows, count, 3, 1, values // 3)
        x = jnp.broadcast_to(x, (rows, count, 3, self.frames, values // 3))
        return self.proj(x.reshape(rows, count, -1))


class Attention(nnx.Module):
    """Bidirectional self-attention; queries, keys and values come from one matrix."""

    def __init__(self, config: QwenVisionConfig, *, key: jax.Array):
        qkv, proj = jax.random.split(key)
        width = config.hidden_size
        self.qkv = Linear(width, 3 * width, bias=True, key=qkv)
        self.proj = Linear(width, width, bias=True, key=proj)
        self.num_heads = config.num_heads
        self.window = config.window
        self.longest = config.longest

    @jax.named_scope("attention")
    def __call__(
        self,
        x: Float[Array, "R patches width"],
        cos: Float[Array, "R patches 1 head"],
        sin: Float[Array, "R patches 1 head"],
        segment: Int[Array, "R patches"],
        implementation: attention.Implementation,
        window: Int[Array, "R patches"] | None = None,
        full: Bool[Array, ""] | None = None,
    ) -> Float[Array, "R patches width"]:
        """Patches see those of their `segment`, an image, or, unless `full`, of their `window`."""
        rows, patches, width = x.shape
        qkv = self.qkv(x).reshape(rows, patches, 3, self.num_heads, width // self.num_heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        q, k = rope.rotate(q, cos, sin), rope.rotate(k, cos, sin)

        def attend(segment: Int[Array, "R patches"], reach: int | None) -> jax.Array:
            return attention.attend(
                q,
                k,
                v,
                causal=False,
                segment=segment,
                reach=reach,
                implementation=implementation,
            )

        # Where a row has room for several of the longest images, patches far away are another's.
        reach = self.longest if 0 < 3 * self.longest < patches else None
        if window is None:
            y = attend(segment, reach)
        else:
            near = self.window**2
            y = jax.lax.cond(full, lambda: attend(segment, reach), lambda: attend(window, near))
        return self.proj(y.reshape(rows, patches, width))


class GatedMLP(nnx.Module):
    """Gated feed-forward block with biases: down(act(gate(x)) * up(x))."""

    def __init__(self, features: int, hidden: int, act: str, *, key: jax.Array):
        gate, up, down = jax.random.split(key, 3)
        self.gate_proj = Linear(features, hidden, bias=True, key=gate, part="gate")
        self.up_proj = Linear(features, hidden, bias=True, key=up, part="up")
        self.down_proj = Linear(hidden, features, bias=True, key=down)
        self.act = act

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "*any width"]) -> Float[Array, "*any width"]:
        return self.down_proj(ACTIVATIONS[self.act](self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):
    """Pre-norm residual layer."""

    def __init__(self, config: QwenVisionConfig, *, key: jax.Array):
        attention_key, mlp_key = jax.random.split(key)
        norm, mlp = NORMS[config.norm], GatedMLP if config.gated else MLP
        self.norm1 = norm(config.hidden_size, epsilon=EPSILON)
        self.attn = Attention(config, key=attention_key)
        self.norm2 = norm(config.hidden_size, epsilon=EPSILON)
        self.mlp = mlp(config.hidden_size, config.intermediate_size, config.hidden_act, key=mlp_key)

    def __call__(
        self,
        x: Float[Array, "R patches width"],
        cos: Float[Array, "R patches 1 head"],
        sin: Float[Array, "R patches 1 head"],
        segment: Int[Array, "R patches"],
        implementation: attention.Implementation,
        window: Int[Array, "R patches"] | None = None,
        full: Bool[Array, ""] | None = None,
    ) -> Float[Array, "R patches width"]:
        """`segment`, `window` and `full` are as in `Attention`."""
        x = x + self.attn(self.norm1(x), cos, sin, segment, implementation, window, full)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """Neighbouring patches, which follow each other, to one token of the decoder's width."""

    def __init__(self, config: QwenVisionConfig, *, key: jax.Array):
        first, second = jax.random.split(key)
        width = config.hidden_size * config.merge**2
        self.ln_q = NORMS[config.norm](config.hidden_size, epsilon=EPSILON)
        self.linear_1 = Linear(width, width, bias=True, key=first)
        self.linear_2 = Linear(width, config.output_size, bias=True, key=second)
        self.merged = config.merge**2

    @jax.named_scope("merger")
    def __call__(self, x: Float[Array, "R patches width"]) -> Float[Array, "R V D"]:
        """V = patches / merge**2 tokens; token g is made of patches g * merge**2 and on."""
        rows, patches, _ = x.shape
        x = self.ln_q(x).reshape(rows, patches // self.merged, -1)
        return self.linear_2(ACTIVATIONS["gelu"](self.linear_1(x)))


class QwenVisionTower(nnx.Module):
    """Features of patches, and the `merger` that makes tokens of the decoder of them."""

    def __init__(self, config: QwenVisionConfig, *, key: jax.Array):
        patch, blocks, merger = jax.random.split(key, 3)
        self.patch_embed = PatchEmbed(config, key=patch)
        self.blocks = scan.stack(lambda k: Block(config, key=k), config.num_layers, blocks)
        self.merger = PatchMerger(config, key=merger)
        self.head_dim = config.hidden_size // config.num_heads
        self.rope_theta = config.rope_theta
        self.window = config.window
        full = config.full_layers
        self.full = tuple(i in full for i in range(config.num_layers)) if config.window else ()

    @jax.named_scope("vision_tower")
    def __call__(
        self,
        patches: Float[Array, "R patches F"],
        position: Int[Array, "R patches 3"],
        *,
        remat: scan.Remat,
        implementation: attention.Implementation,
    ) -> Float[Array, "R patches width"]:
        """Features of normalised patches, see `PatchEmbed`.

        `position` is (number of the image, row, column), see `Row`. Patches that fill a sequence
        up have an image number of their own and give finite features of no meaning.
        """
        cos, sin = axial_angles(position[:, :, 1:], self.head_dim, self.rope_theta)
        segment = position[:, :, 0]
        window = windows(position, self.window) if self.window else None
        return scan.run(
            self.blocks,
            lambda block, x, *full: block(x, cos, sin, segment, implementation, window, *full),
            self.patch_embed(patches),
            remat=remat,
            kinds=self.full,
        )
