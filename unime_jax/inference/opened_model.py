"""A model folder or hub id, opened on the devices of this process and ready to embed."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Float32
from tqdm import tqdm

from unime_jax import sharding
from unime_jax.backbones import Backbone, Processing, open_backbone
from unime_jax.backbones.io.st_folder import Defaults
from unime_jax.backbones.preprocessing.prompts import name_of
from unime_jax.data import inference_shapes
from unime_jax.data.image_urls import ImageUrls
from unime_jax.data.inference_batches import Shapes
from unime_jax.data.truncation import kept
from unime_jax.data.user_inputs import PromptedInput
from unime_jax.data.user_lists import naming
from unime_jax.inference.encode import Model, NonFiniteError, encode_blocks
from unime_jax.models.forward import make_encode
from unime_jax.models.inference import default_execution, targets
from unime_jax.models.vlm import Execution
from unime_jax.operations import compilation_cache


class OpenedModel:
    """A model, its preprocessing and its devices.

    Attributes:
      backbone: the opened folder.
      model: forward, parameters and mesh, for `encode.encode_blocks`.
      max_length: the most tokens of an item; less than was asked for where the model takes less.
      prompts: by name, as the folder has them for sentence-transformers.
      default_prompt_name: of the prompt before texts where a call asks for none; None: no prompt.
      truncate_dim: how many numbers of an embedding are kept; None: all.
      image_urls: limits under which images are fetched by their URLs; None: none is.
      model_dtype: of the weights on the devices; int8: of the linear layers'.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        mesh: Mesh,
        dtype: jnp.dtype,
        execution: Execution,
        truncate_dim: int | None = None,
        image_urls: ImageUrls | None = None,
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
        self.image_urls = image_urls
        self.model_dtype = np.dtype(dtype)
        self._preprocess = backbone.preprocess
        self._layout = backbone.layout
        self._shards = sharding.row_shards(mesh)
        self._parameters = backbone.load(wanted)
        self._reopen: Callable[[], OpenedModel] | None = None
        self.model = Model(make_encode(graph, execution), ({}, self._parameters), mesh)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike[str],
        *,
        dtype: Literal["float32", "bfloat16", "int8"] = "bfloat16",
        max_length: int | None = None,
        revision: str | None = None,
        token: str | None = None,
        processing: Processing | None = None,
        truncate_dim: int | None = None,
        image_urls: ImageUrls | None = None,
        mesh: Mesh | None = None,
    ) -> Self:
        """Opens a local folder or a hub repository and puts its weights on the devices.

        Args:
          dtype: of weights and activations, the same on every machine. Norms, softmax and the
            embeddings themselves are float32 either way; "float32" also multiplies in float32 on
            a TPU, which takes several times as long there. "int8": linear layers as codes with a
            scale per output channel, half the memory of bfloat16; the rest is bfloat16.
          max_length: the most tokens of an item, its image tokens included; None: as many as the
            folder says that it was trained with or is to be used with, else 4096.
          revision: branch, tag or commit of a hub repository; None: its main branch as it is now.
          token: of the hub, for what is private; None: that of `hf auth login` or `HF_TOKEN`. It
            is not kept, nor pickled.
          processing: how items become tokens and patches; None: as recorded when the folder was
            exported from here, else as the family's published embedders do it, which is logged.
          truncate_dim: how many numbers of an embedding are kept; None: as the folder says.
          image_urls: limits under which images are fetched by their URLs; None: such an image is
            an error.
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
            token=token,
            processing=processing,
        )
        opened = cls(
            backbone,
            mesh=sharding.make_mesh(1, -1, 1, jax.local_devices()) if mesh is None else mesh,
            dtype=jnp.dtype(dtype),
            execution=default_execution(jnp.dtype(dtype)),
            truncate_dim=truncate_dim,
            image_urls=image_urls,
        )
        if mesh is None:
            opened._reopen = functools.partial(
                cls.from_pretrained,
                folder_or_hub_id,
                dtype=dtype,
                max_length=max_length,
                revision=revision,
                processing=processing,
                truncate_dim=truncate_dim,
                image_urls=image_urls,
            )
        return opened

    def __reduce__(self):
        """Pickled, it is how to open the folder again, on the devices that are there then."""
        if self._reopen is None:
            raise TypeError("an Embedder on a mesh of its own cannot be pickled: open another one")
        return self._reopen, ()

    @property
    def dimension(self) -> int:
        """D of the embeddings that `encode` gives by default."""
        return self._kept(None)

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
