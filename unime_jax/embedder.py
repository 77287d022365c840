"""Embeddings without configs or data sets: open a model folder, hand over texts and images."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Float32
from PIL import Image
from tqdm import tqdm

from unime_jax import paths, sharding
from unime_jax.backbones import Backbone, Processing, open_backbone
from unime_jax.backbones.io.st_folder import Defaults
from unime_jax.backbones.preprocessing.prompts import name_of
from unime_jax.batch import Row
from unime_jax.data import inference_shapes
from unime_jax.data.inference_batches import Shapes
from unime_jax.data.user_inputs import (
    IMAGE_SUFFIX,
    TEXT_SUFFIX,
    Part,
    UserInput,
    names_image,
    parts,
    split_modalities,
    to_item,
)
from unime_jax.encode import Model, NonFiniteError, encode_blocks
from unime_jax.models import layers
from unime_jax.models.forward import make_encode
from unime_jax.models.vlm import EmbeddingModel, Execution
from unime_jax.operations import compilation_cache

S = TypeVar("S")
T = TypeVar("T")


class Embedder:
    """A model, its preprocessing and its devices; `from_pretrained` makes one.

    Attributes:
      model: forward, parameters and mesh, for `encode.encode_blocks`.
      max_length: the most tokens of an item; less than was asked for where the model takes less.
      prompts: by name, as the folder has them for sentence-transformers.
      default_prompt_name: of the one that goes before texts where a call asks for none; None:
        there is no such one.
      truncate_dim: how many numbers of an embedding are kept; None: all.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        mesh: Mesh,
        dtype: jnp.dtype,
        execution: Execution,
        truncate_dim: int | None = None,
    ):
        """Reads the weights; `from_pretrained` says what the other arguments mean.

        `execution` is how the forward is run, see `default_execution`.
        """
        self._width = backbone.dimension
        self.truncate_dim = backbone.defaults.truncate_dim if truncate_dim is None else truncate_dim
        self._kept(None)  # a wrong one shows before weights are read
        graph, wanted = targets(backbone, mesh, dtype)
        self.prompts = dict(backbone.defaults.prompts)
        self.default_prompt_name = backbone.defaults.default_prompt_name
        self.max_length = backbone.preprocess.prompt.max_length
        self._preprocess = backbone.preprocess
        self._layout = backbone.layout
        self._shards = sharding.row_shards(mesh)
        self._parameters = backbone.load(wanted)
        self.model = Model(make_encode(graph, execution), ({}, self._parameters), mesh)

    @property
    def dimension(self) -> int:
        """D, of an embedding that `encode` gives if it is not asked for another."""
        return self._kept(None)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike[str],
        *,
        dtype: Literal["float32", "bfloat16", "int8"] = "bfloat16",
        max_length: int | None = None,
        revision: str | None = None,
        processing: Processing | None = None,
        truncate_dim: int | None = None,
        mesh: Mesh | None = None,
    ) -> "Embedder":
        """Opens a local folder or a hub repository and puts its weights on the devices.

        Args:
          dtype: of weights and activations, the same on every machine. Norms, softmax and the
            embeddings themselves are float32 either way; "float32" also multiplies in float32 on
            a TPU, which takes several times as long there. "int8": linear layers as codes with a
            scale per output channel, half the memory of bfloat16; the rest is bfloat16.
          max_length: the most tokens of an item, its image tokens included; None: as many as the
            folder says that it was trained with or is to be used with, else 4096.
          revision: branch, tag or commit of a hub repository; None: its main branch as it is now.
          processing: how items become tokens and patches; None: as recorded when the folder was
            exported from here, else as the family's published embedders do it, which is logged.
          truncate_dim: how many numbers of an embedding are kept; None: as the folder says.
          mesh: from `sharding.make_mesh`; None: this process's devices, with items and weights
            divided among them. On a mesh of several processes all must make the same calls.

        Raises:
          ValueError: the folder is not a model that is supported, or lacks files; or it is one of
            sentence-transformers that asks for what is not done here.
        """
        if dtype not in ("float32", "bfloat16", "int8"):
            raise ValueError(f'dtype is {dtype!r}; use "float32", "bfloat16" or "int8"')
        compilation_cache.use_for_library()
        backbone = open_backbone(
            os.fspath(folder_or_hub_id),
            max_length=max_length,
            revision=revision,
            processing=processing,
        )
        if mesh is None:
            mesh = sharding.make_mesh(1, -1, 1, jax.local_devices())
        return cls(
            backbone,
            mesh=mesh,
            dtype=jnp.dtype(dtype),
            execution=default_execution(jnp.dtype(dtype)),
            truncate_dim=truncate_dim,
        )

    def encode(
        self,
        items: Iterable[UserInput],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        suffix: str = "",
        truncate_dim: int | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> Float32[np.ndarray, "n D"]:
        """Unit-norm embeddings in the items' order.

        An item is a text, a PIL image, or a dict of "text" and "image" (either may be left out).
        An image is a path, the bytes of a file, a PIL image or a uint8 array [height, width, 3];
        a list of them is several images. `prompt` + text + `suffix` is what the model's template
        gets; images go where prompt or text have markers `<|image_1|>`, else in front of it
        (`preprocessing.prompts.Prompt`). A str is a text, always: where it names an image, for
        which sentence-transformers takes it, there is a warning; {"image": path} and
        {"text": text} mean the same in both.

        Items run in batches of one shape: lengths are rounded up to a few, each of which compiles
        once. Texts beyond `max_length` are cut before the suffix, with one warning a call.

        Args:
          prompt: what goes directly before every text; "": nothing; None: as `prompt_name` says.
          prompt_name: of one of `prompts`; None: the folder's default prompt, mostly none.
          truncate_dim: how many numbers of an embedding are kept, before it is scaled to length 1
            (sentence-transformers scales before, the cosines are the same); None: `truncate_dim`
            of this object.
          batch_size: items of a batch, which bounds memory. Keep to few values, as each compiles
            anew. In float32 an embedding depends on its item alone, but for the last bits. In
            bfloat16 and int8 it depends a little on what it is batched with: each padded length
            and batch size is a program of its own, which may round elsewhere (cosine above 0.999).

        Raises:
          TypeError, ValueError: an item is not as above, an image cannot be read, or an image
            alone takes more than `max_length` tokens, a token has no embedding, or the result is
            not finite. The message starts with the item's index. Or there is no prompt of that
            name, or no such dimension.
        """
        dimension = self._kept(truncate_dim)
        before = self._prompt(prompt, prompt_name)
        items = _listed(items)
        self._warn_of_names(items)
        work = [Part(index, item, before, suffix) for index, item in enumerate(items)]
        return truncated(self._encode(work, batch_size, show_progress_bar), dimension)

    def encode_sum(
        self,
        items: Iterable[UserInput],
        *,
        image_suffix: str = IMAGE_SUFFIX,
        text_suffix: str = TEXT_SUFFIX,
        truncate_dim: int | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> Float32[np.ndarray, "n D"]:
        """As `encode`, with an item's image and text embedded apart, added, and scaled to length 1.

        This is how UniME embeds both at once after its first stage, without training on such items
        (section 3.2.2, figure 2b). An item of a single modality has the embedding of that one.
        `image_suffix` follows the images, `text_suffix` the text, which is stripped and loses its
        markers. With other suffixes this serves any model. The folder's prompts are not used;
        `truncate_dim` is as of `encode`.

        Raises:
          TypeError, ValueError: as `encode`.
        """
        dimension = self._kept(truncate_dim)
        items = _listed(items)
        self._warn_of_names(items)
        work = [
            part
            for index, item in enumerate(items)
            for part in split_modalities(index, item, image_suffix, text_suffix)
        ]
        vectors = np.zeros((len(items), self._width), np.float32)
        numbers = np.array([part.number for part in work], int)
        np.add.at(vectors, numbers, self._encode(work, batch_size, show_progress_bar))
        several = np.bincount(numbers, minlength=len(items)) > 1
        length = np.linalg.norm(vectors[several], axis=1, keepdims=True)
        vectors[several] /= np.maximum(length, 1e-12)
        return truncated(vectors, dimension)

    def _prompt(self, prompt: str | None, prompt_name: str | None) -> str:
        return Defaults(self.prompts, self.default_prompt_name).prompt(prompt, prompt_name)

    def _kept(self, truncate_dim: int | None) -> int:
        """How many numbers of an embedding a call keeps."""
        return kept(self._width, self.truncate_dim if truncate_dim is None else truncate_dim)

    def _warn_of_names(self, items: Sequence[UserInput]) -> None:
        """Says once where texts are embedded that another library would open as images."""
        if not self._layout.patches:
            return
        names = [index for index, item in enumerate(items) if names_image(item)]
        if names:
            logging.warning(
                "%d of %d items are texts that name an image, the first is items[%d], %r: its name"
                ' is embedded. Write {"image": name} for the picture, in sentence-transformers, too'
                ' (which opens such a str), or {"text": name} for the text',
                len(names),
                len(items),
                names[0],
                str(items[names[0]])[:200],
            )

    def shapes(self, batch_size: int) -> Shapes:
        """Shapes of batches of about so many rows, see `inference_shapes`."""
        return inference_shapes.shapes_of(
            self._layout,
            shards=self._shards,
            batch_size=batch_size,
            max_length=self.max_length,
        )

    def _encode(
        self, work: Sequence[Part], batch_size: int, show_progress_bar: bool
    ) -> Float32[np.ndarray, "n D"]:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        # A few items are not worth a batch; powers of two keep the shapes few.
        batch_size = min(batch_size, inference_shapes.power_of_two(len(work)))
        with tqdm(total=len(work), unit="item", disable=not show_progress_bar) as bar:
            blocks = encode_blocks(
                self.model,
                work,
                lambda part: _blame(part.number, self._row, part),
                self.shapes(batch_size),
                window=batch_size,
                progress=bar.update,
            )
            try:
                (encoded,) = blocks
            except NonFiniteError as error:
                first = work[error.rows[0]]
                name = f"items[{first.number}], {name_of(first.item())}"
                raise ValueError(error.of(name)) from error
        if encoded.truncated:
            logging.warning(
                "%d of %d texts were cut to max_length = %d tokens",
                encoded.truncated,
                len(work),
                self.max_length,
            )
        if encoded.orphan_images:
            logging.warning(
                "%d of %d items have image markers without image", encoded.orphan_images, len(work)
            )
        return encoded.vectors

    def _row(self, part: Part) -> Row:
        return self._preprocess(part.item())

    @staticmethod
    def similarity(
        a: Float[np.ndarray, "n D"], b: Float[np.ndarray, "m D"]
    ) -> Float32[np.ndarray, "n m"]:
        """Cosines of all rows of `a` with all rows of `b`; a row of zeros has cosine 0."""
        unit = []
        for name, x in (("a", a), ("b", b)):
            x = np.asarray(x, np.float32)
            if x.ndim != 2:
                raise ValueError(f"{name} has shape {x.shape}; it must be [rows, dimension]")
            unit.append(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))
        return unit[0] @ unit[1].T

    def rendered(
        self,
        item: UserInput,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        suffix: str = "",
    ) -> str:
        """What the tokenizer gets in `encode`, with a single image token where an image goes."""
        before = self._prompt(prompt, prompt_name)
        return self._preprocess.prompt.rendered(to_item(item, before, suffix))

    def rendered_sum(
        self,
        item: UserInput,
        *,
        image_suffix: str = IMAGE_SUFFIX,
        text_suffix: str = TEXT_SUFFIX,
    ) -> list[str]:
        """What the tokenizer gets in `encode_sum`: for the images, then for the text."""
        rendered = self._preprocess.prompt.rendered
        return [
            rendered(part.item()) for part in split_modalities(0, item, image_suffix, text_suffix)
        ]


def targets(
    backbone: Backbone, mesh: Mesh, dtype: jnp.dtype
) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
    """The model, and shapes, dtypes and shardings of its parameters, by path."""

    def make() -> EmbeddingModel:
        model = backbone.make_model(jax.random.key(0))
        if dtype == jnp.int8:
            layers.quantize(model, {f"{path}.kernel" for path, _ in layers.linears(model)})
        return model

    graph, shapes = paths.split(jax.eval_shape(make))

    def stored(path: str) -> jnp.dtype:
        codes = shapes[path].dtype == jnp.int8
        scale = path.endswith(".kernel_scale")
        return shapes[path].dtype if codes or scale else activations(dtype)

    return graph, sharding.abstract_parameters(shapes, mesh, stored)


def kept(width: int, truncate_dim: int | None) -> int:
    """How many of an embedding's numbers are kept; ValueError: more than it has, or none."""
    if truncate_dim is None:
        return width
    if not 1 <= truncate_dim <= width:
        raise ValueError(f"truncate_dim is {truncate_dim}; embeddings of this model have {width}")
    return truncate_dim


def truncated(
    vectors: Float32[np.ndarray, "n D"], dimension: int
) -> Float32[np.ndarray, "n dimension"]:
    """The first `dimension` numbers of every vector, scaled to length 1; all as they are."""
    if dimension == vectors.shape[1]:
        return vectors
    kept = vectors[:, :dimension]
    return kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12)


def activations(dtype: jnp.dtype) -> jnp.dtype:
    """What is computed in, given the dtype of the weights."""
    return jnp.dtype("bfloat16") if dtype == jnp.int8 else dtype


def default_execution(dtype: jnp.dtype) -> Execution:
    """The forward on any device, given the dtype of the weights."""
    return Execution(activations(dtype), "none", "xla")


def _listed(items: Iterable[UserInput]) -> list[UserInput]:
    if isinstance(items, str | bytes | Mapping | Image.Image):
        raise TypeError(f"items is a single {type(items).__name__}; put it in a list")
    items = list(items)
    for index, item in enumerate(items):  # a wrong type shows now, not after hours of encoding
        _blame(index, parts, item)
    return items


def _blame(index: int, call: Callable[[S], T], item: S) -> T:
    """`call(item)`; errors name the item."""
    try:
        return call(item)
    except TypeError as error:
        raise TypeError(f"items[{index}]: {error}") from error
    except ValueError as error:
        raise ValueError(f"items[{index}]: {error}") from error
