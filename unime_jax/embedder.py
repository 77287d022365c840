"""Embeddings of texts and images by a model folder or hub id, without configs or data sets."""

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Float, Float32
from tqdm import tqdm

from unime_jax import sharding
from unime_jax.backbones import Backbone, Processing, open_backbone
from unime_jax.backbones.io.st_folder import Defaults
from unime_jax.backbones.preprocessing.prompts import name_of
from unime_jax.data import inference_shapes
from unime_jax.data.inference_batches import Shapes
from unime_jax.data.truncation import kept, truncated, unit_rows
from unime_jax.data.user_inputs import (
    IMAGE_SUFFIX,
    TEXT_SUFFIX,
    PromptedInput,
    UserInput,
    split_modalities,
    to_item,
)
from unime_jax.data.user_lists import is_single, listed, naming, sum_of_parts
from unime_jax.encode import Model, NonFiniteError, encode_blocks
from unime_jax.models.forward import make_encode
from unime_jax.models.inference import default_execution, targets
from unime_jax.models.vlm import Execution
from unime_jax.operations import compilation_cache


class Embedder:
    """A model, its preprocessing and its devices.

        embedder = Embedder.from_pretrained("runs/stage2/hf")
        vectors = embedder.encode(["a red circle", {"image": "circle.png"}])
        embedder.similarity(vectors[:1], vectors[1:])

    Attributes:
      backbone: the opened folder.
      model: forward, parameters and mesh, for `encode.encode_blocks`.
      max_length: the most tokens of an item; less than was asked for where the model takes less.
      prompts: by name, as the folder has them for sentence-transformers.
      default_prompt_name: of the prompt before texts where a call asks for none; None: no prompt.
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
        """Reads the weights; other arguments are those of `from_pretrained`.

        `execution` is how the forward is run, see `models.inference`.
        """
        self.backbone = backbone
        self._width = backbone.dimension
        self.truncate_dim = backbone.defaults.truncate_dim if truncate_dim is None else truncate_dim
        self._kept(None)  # a wrong one shows before weights are read
        graph, wanted = targets(backbone.make_model, mesh, dtype)
        self.prompts = dict(backbone.defaults.prompts)
        self.default_prompt_name = backbone.defaults.default_prompt_name
        self.max_length = backbone.preprocess.prompt.max_length
        self._preprocess = backbone.preprocess
        self._layout = backbone.layout
        self._shards = sharding.row_shards(mesh)
        self._parameters = backbone.load(wanted)
        self._reopen: Callable[[], Embedder] | None = None
        self.model = Model(make_encode(graph, execution), ({}, self._parameters), mesh)

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
        embedder = cls(
            backbone,
            mesh=sharding.make_mesh(1, -1, 1, jax.local_devices()) if mesh is None else mesh,
            dtype=jnp.dtype(dtype),
            execution=default_execution(jnp.dtype(dtype)),
            truncate_dim=truncate_dim,
        )
        if mesh is None:
            embedder._reopen = functools.partial(
                cls.from_pretrained,
                folder_or_hub_id,
                dtype=dtype,
                max_length=max_length,
                revision=revision,
                processing=processing,
                truncate_dim=truncate_dim,
            )
        return embedder

    def __reduce__(self):
        """Pickled, it is how to open the folder again, on the devices that are there then."""
        if self._reopen is None:
            raise TypeError("an Embedder on a mesh of its own cannot be pickled: open another one")
        return self._reopen, ()

    def encode(
        self,
        items: UserInput | Iterable[UserInput],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        suffix: str = "",
        truncate_dim: int | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> Float32[np.ndarray, "*n D"]:
        """Unit-norm embeddings in the items' order; of a single item, its vector [D].

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
        listing = listed(items, embeds_images=bool(self._layout.patches))
        work = [PromptedInput(index, item, before, suffix) for index, item in enumerate(listing)]
        vectors = truncated(self._encode(work, batch_size, show_progress_bar), dimension)
        return vectors[0] if is_single(items) else vectors

    def encode_query(
        self,
        items: UserInput | Iterable[UserInput],
        *,
        truncate_dim: int | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> Float32[np.ndarray, "*n D"]:
        """As `encode`, with the folder's prompt "query", or its default prompt if it has none."""
        return self.encode(
            items,
            prompt_name=self._first_prompt("query"),
            truncate_dim=truncate_dim,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
        )

    def encode_document(
        self,
        items: UserInput | Iterable[UserInput],
        *,
        truncate_dim: int | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> Float32[np.ndarray, "*n D"]:
        """As `encode`, with the folder's prompt "document", "passage" or "corpus".

        The first that it has counts; without any it is the default prompt. These are the names that
        sentence-transformers looks for.
        """
        return self.encode(
            items,
            prompt_name=self._first_prompt("document", "passage", "corpus"),
            truncate_dim=truncate_dim,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
        )

    @staticmethod
    def similarity(
        a: Float[np.ndarray, "*n D"], b: Float[np.ndarray, "*m D"]
    ) -> Float32[np.ndarray, "n m"]:
        """Cosines of all rows of `a` with all rows of `b`; a row of zeros has cosine 0."""
        return unit_rows("a", a) @ unit_rows("b", b).T

    @staticmethod
    def similarity_pairwise(
        a: Float[np.ndarray, "*n D"], b: Float[np.ndarray, "*n D"]
    ) -> Float32[np.ndarray, " n"]:
        """Cosine of each row of `a` with the row of `b` in the same place.

        Raises:
          ValueError: there are not as many.
        """
        left, right = unit_rows("a", a), unit_rows("b", b)
        if left.shape != right.shape:
            raise ValueError(f"a has shape {left.shape}, b {right.shape}; rows go by pairs")
        return np.einsum("nd,nd->n", left, right)

    @property
    def dimension(self) -> int:
        """D of the embeddings that `encode` gives by default."""
        return self._kept(None)

    def encode_sum(
        self,
        items: UserInput | Iterable[UserInput],
        *,
        image_suffix: str = IMAGE_SUFFIX,
        text_suffix: str = TEXT_SUFFIX,
        truncate_dim: int | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> Float32[np.ndarray, "*n D"]:
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
        listing = listed(items, embeds_images=bool(self._layout.patches))
        work = [
            prompted
            for index, item in enumerate(listing)
            for prompted in split_modalities(index, item, image_suffix, text_suffix)
        ]
        vectors = self._encode(work, batch_size, show_progress_bar)
        sums = truncated(
            sum_of_parts(vectors, [part.number for part in work], len(listing)), dimension
        )
        return sums[0] if is_single(items) else sums

    def rendered(
        self,
        item: UserInput,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        suffix: str = "",
    ) -> str:
        """The text that `encode` tokenizes, with a single image token where an image goes."""
        before = self._prompt(prompt, prompt_name)
        return self._preprocess.prompt.rendered(to_item(item, before, suffix))

    def rendered_sum(
        self,
        item: UserInput,
        *,
        image_suffix: str = IMAGE_SUFFIX,
        text_suffix: str = TEXT_SUFFIX,
    ) -> list[str]:
        """The texts that `encode_sum` tokenizes: for the images, then for the text."""
        rendered = self._preprocess.prompt.rendered
        work = split_modalities(0, item, image_suffix, text_suffix)
        return [rendered(part.item()) for part in work]

    def shapes(self, batch_size: int) -> Shapes:
        """Shapes of batches of about so many rows, see `inference_shapes`."""
        return inference_shapes.shapes_of(
            self._layout, shards=self._shards, batch_size=batch_size, max_length=self.max_length
        )

    def _encode(
        self, work: Sequence[PromptedInput], batch_size: int, show_progress_bar: bool
    ) -> Float32[np.ndarray, "n D"]:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        # A few items are not worth a batch; powers of two keep the shapes few.
        batch_size = min(batch_size, inference_shapes.power_of_two(len(work)))
        with tqdm(total=len(work), unit="item", disable=not show_progress_bar) as bar:
            blocks = encode_blocks(
                self.model,
                work,
                lambda part: naming(part.number, lambda: self._preprocess(part.item())),
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
        if encoded.unmatched_markers:
            logging.warning(
                "%d of %d items have image markers without image",
                encoded.unmatched_markers,
                len(work),
            )
        return encoded.vectors

    def _first_prompt(self, *names: str) -> str | None:
        """The first of these names that the folder has a prompt of; None: of none."""
        return next((name for name in names if name in self.prompts), None)

    def _prompt(self, prompt: str | None, prompt_name: str | None) -> str:
        return Defaults(self.prompts, self.default_prompt_name).prompt(prompt, prompt_name)

    def _kept(self, truncate_dim: int | None) -> int:
        """D of the embeddings that a call returns."""
        return kept(self._width, self.truncate_dim if truncate_dim is None else truncate_dim)
