"""CLIP and SigLIP: a tower for texts and one for images, whose unit vectors lie in one space.

Attributes are called as in the checkpoints, so that a parameter's path is its name there.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from unime_jax import sharding
from unime_jax.batch import Inputs
from unime_jax.models import scan
from unime_jax.models.layers import Embedding, LayerNorm, Linear
from unime_jax.models.naflex import FlexibleTower
from unime_jax.models.pooling import last_token, unit_norm
from unime_jax.models.pooling_head import PoolingHead
from unime_jax.models.vit import Encoder, LayerConfig, VisionConfig, VisionTower
from unime_jax.models.vlm import EmbeddingModel, Execution, Pixels, normalise

# The token whose state is a text's: the first with a certain id, the first of those with the
# largest id of the text (CLIP's first version), or the last.
TextPooling = int | Literal["largest id", "last"]


@dataclasses.dataclass(frozen=True)
class TextConfig(LayerConfig):
    """Text tower. CLIP's is causal; SigLIP's attends to all tokens, padding included."""

    vocab_size: int
    max_positions: int
    causal: bool
    pooling: TextPooling


@dataclasses.dataclass(frozen=True)
class DualEncoderConfig:
    """Configuration of a checkpoint, read from its Hugging Face configuration files.

    `siglip`: the towers end in heads, attention pooling for images; else (CLIP) in projections
    without bias, of the class token for images. `flexible`: images have any aspect (NaFlex).
    """

    text: TextConfig
    vision: VisionConfig
    dimension: int
    siglip: bool
    pixels: Pixels
    flexible: bool = False


class TextEmbeddings(nnx.Module):
    """Token embeddings plus learned positions."""

    def __init__(self, config: TextConfig, *, key: jax.Array):
        token, position = jax.random.split(key)
        self.token_embedding = Embedding(config.vocab_size, config.hidden_size, key=token)
        self.position_embedding = Embedding(config.max_positions, config.hidden_size, key=position)

    def __call__(
        self, tokens: Int[Array, "R T"], positions: Int[Array, "R T"], dtype: jnp.dtype
    ) -> Float[Array, "R T width"]:
        return self.token_embedding(tokens, dtype) + self.position_embedding(positions, dtype)


class TextTower(nnx.Module):
    """The state of each text's pooled token, of SigLIP through a linear head."""

    def __init__(self, config: DualEncoderConfig, *, key: jax.Array):
        embeddings, encoder, head = jax.random.split(key, 3)
        text = config.text
        width = text.hidden_size
        self.embeddings = TextEmbeddings(text, key=embeddings)
        self.encoder = Encoder(text, key=encoder)
        self.final_layer_norm = LayerNorm(width, epsilon=text.layer_norm_eps)
        self.head = Linear(width, config.dimension, bias=True, key=head) if config.siglip else None
        self.causal = text.causal
        self.pooling = text.pooling

    @jax.named_scope("text_tower")
    def __call__(
        self,
        tokens: Int[Array, "R T"],
        positions: Int[Array, "R T"],
        length: Int[Array, " R"],
        execution: Execution,
    ) -> Float[Array, "R width"]:
        x = self.embeddings(tokens, positions, execution.dtype)
        x = scan.run(
            self.encoder.layers,
            lambda layer, x: layer(
                x,
                execution.attention,
                causal=self.causal,
                length=None if self.causal else length,
            ),
            sharding.shard_rows(x),
            remat=execution.remat,
        )
        pooled = last_token(x, self._pooled_length(tokens, length))
        pooled = self.final_layer_norm(pooled)  # of each token by itself
        return pooled if self.head is None else self.head(pooled)

    def _pooled_length(
        self, tokens: Int[Array, "R T"], length: Int[Array, " R"]
    ) -> Int[Array, " R"]:
        """Tokens up to the pooled one."""
        if self.pooling == "last":
            return length
        real = jnp.arange(tokens.shape[1]) < length[:, None]
        if self.pooling == "largest id":
            return 1 + jnp.argmax(jnp.where(real, tokens, -1), axis=1)
        return 1 + jnp.argmax(real & (tokens == self.pooling), axis=1)


class ImageTower(VisionTower):
    """A vector of each tile: CLIP's class token, or SigLIP's attention pooling."""

    def __init__(self, config: DualEncoderConfig, *, key: jax.Array):
        tower, head = jax.random.split(key)
        super().__init__(config.vision, key=tower)
        self.head = PoolingHead(config.vision, key=head) if config.siglip else None

    def pooled(
        self,
        patches: Float[Array, "tiles P F"],
        position: Int[Array, "tiles P 3"],
        execution: Execution,
    ) -> Float[Array, "tiles width"]:
        """Vectors of normalised pixel patches, which fill their tiles, after the final norm."""
        x = self.hidden_states(patches, remat=execution.remat, implementation=execution.attention)
        if self.head is None:
            return self.post_layernorm(x[:, 0])
        return self.head(self.post_layernorm(x), execution.attention)


class DualEncoder(EmbeddingModel):
    """Texts and images to vectors of one space; items with both are the sum of the two.

    The temperature and bias of the checkpoint's own loss are no part of it.
    """

    def __init__(self, config: DualEncoderConfig, *, key: jax.Array):
        text, vision, text_out, vision_out = jax.random.split(key, 4)
        self.text_model = TextTower(config, key=text)
        self.vision_model: ImageTower | FlexibleTower = (
            FlexibleTower(config.vision, key=vision)
            if config.flexible
            else ImageTower(config, key=vision)
        )
        widths = config.text.hidden_size, config.vision.hidden_size
        self.text_projection, self.visual_projection = (
            None if config.siglip else Linear(width, config.dimension, bias=False, key=k)
            for width, k in zip(widths, (text_out, vision_out), strict=True)
        )
        self.pixels = config.pixels

    def __call__(self, inputs: Inputs, execution: Execution) -> Float[Array, "R D"]:
        """Unit vector of the sum of a row's unit vectors: of its text, and of its images.

        Several images count as one: the unit vector of the sum of theirs. A row without tokens has
        no text; where no row of the bucket has any, the text tower is left out, as the image tower
        is where there are no tiles.
        """
        parts = []
        if inputs.tokens.shape[1]:
            parts.append(_where(inputs.length > 0, self.text_vectors(inputs, execution)))
        if inputs.patches is not None:
            vectors, has_image = self.image_vectors(inputs, execution)
            parts.append(_where(has_image, vectors))
        assert parts, "a bucket has tokens or tiles"
        return unit_norm(jnp.sum(jnp.stack(parts), axis=0))

    def text_vectors(self, inputs: Inputs, execution: Execution) -> Float[Array, "R D"]:
        """Unit vectors of the rows' texts; of no meaning for rows without tokens."""
        x = self.text_model(inputs.tokens, inputs.positions[..., 0], inputs.length, execution)
        return unit_norm(x if self.text_projection is None else self.text_projection(x))

    def image_vectors(
        self, inputs: Inputs, execution: Execution
    ) -> tuple[Float[Array, "R D"], Bool[Array, " R"]]:
        """Unit vectors of the rows' images, and which rows have any."""
        patches, position = inputs.patches, inputs.patch_position
        assert patches is not None and position is not None, "the family's layout is `positioned`"
        rows, tiles, count, values = patches.shape
        x = normalise(patches, self.pixels).astype(execution.dtype)
        x = self.vision_model.pooled(
            x.reshape(rows * tiles, count, values),
            position.reshape(rows * tiles, count, 3),
            execution,
        )
        x = unit_norm(x if self.visual_projection is None else self.visual_projection(x))
        filled = position[:, :, 0, 0] >= 0
        x = jnp.sum(jnp.where(filled[..., None], x.reshape(rows, tiles, -1), 0), axis=1)
        return unit_norm(x), filled.any(axis=1)


def _where(has: Bool[Array, " R"], vectors: Float[Array, "R D"]) -> Float[Array, "R D"]:
    return jnp.where(has[:, None], vectors, 0)
