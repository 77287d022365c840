"""A checkpoint folder, opened: its model, its host preprocessing and its names."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from unime_jax.backbones import weights
from unime_jax.backbones.processing import Processing
from unime_jax.batch import Item, Row
from unime_jax.data.pack import Layout
from unime_jax.models.decoder import DecoderConfig
from unime_jax.models.vlm import Vlm


class Preprocessor(Protocol):
    """Host side of a family; picklable."""

    def __call__(self, item: Item) -> Row:
        """One row; ValueError if the item cannot be made one."""
        ...

    def rendered(self, item: Item) -> str:
        """The prompt of an item as text, with a single image token where an image goes."""
        ...


@dataclasses.dataclass(frozen=True)
class Backbone:
    """What a family module makes of a folder.

    Attributes:
      text: the decoder's configuration; embeddings have its `hidden_size`.
      make_model: the model with random parameters; under `jax.eval_shape`, just its shapes.
      layout: what every row of this backbone looks like.
      config_changes: keys of config.json that `processing` overrules, for exports.
      image_processor_changes: the same for the image processor's configuration.
    """

    folder: pathlib.Path
    text: DecoderConfig
    make_model: Callable[[jax.Array], Vlm]
    names: weights.Names
    preprocess: Preprocessor
    layout: Layout
    processing: Processing
    config_changes: Mapping[str, Any]
    image_processor_changes: Mapping[str, Any]

    def load(self, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """The checkpoint's parameters in the given dtypes and shardings, see `weights.load`."""
        return weights.load(self.folder, targets, self.names)

    def save_weights(
        self, folder: pathlib.Path, parameters: Mapping[str, jax.Array], dtype: np.dtype
    ) -> None:
        """Writes safetensors under the folder's own names, with tensors only generation uses.

        Names are the family's published ones where the folder has no weights.
        """
        source = weights.Checkpoint(self.folder, self.names)
        carried = ((name, source.slice(name)[:]) for name in source.unused())
        weights.save(folder, parameters, self.names, dtype, carried=carried, spell=source.spelled)
