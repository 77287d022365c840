"""Model families: what a Hugging Face folder means, in one module a family.

A family module gives `NAMES`, `make_preprocessor` and `model_config`. Nothing outside this package
asks which family a model is of.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from huggingface_hub import snapshot_download
from transformers import AutoConfig

from unime_jax.backbones import llava_onevision, weights
from unime_jax.backbones.anyres import Size
from unime_jax.backbones.preprocess import LlavaOnevisionPreprocessor
from unime_jax.data.pack import Layout
from unime_jax.models.vlm import Vlm, VlmConfig

FAMILIES = {"llava_onevision": llava_onevision}

HUB_FILES = ("*.json", "*.jinja", "*.txt", "*.safetensors", "tokenizer.model")


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A checkpoint folder, opened: its model, its host preprocessing and its names."""

    folder: pathlib.Path
    config: VlmConfig
    names: weights.Names
    preprocess: LlavaOnevisionPreprocessor

    def make_model(self, key: jax.Array) -> Vlm:
        """The model with random parameters; under `jax.eval_shape`, just its shapes."""
        return Vlm(self.config, key=key)

    @property
    def layout(self) -> Layout:
        """What every row of this backbone looks like."""
        vision, slots = self.config.vision, self.preprocess.slots_per_token
        return Layout(
            axes=1,
            slots=slots,
            blended=slots > 1,
            patches=vision.side**2,
            patch_bytes=3 * vision.patch_size**2,
        )

    def load(self, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """The checkpoint's parameters in the given dtypes and shardings, see `weights.load`."""
        patch = self.config.vision.patch_size
        return weights.load(self.folder, targets, self.names, patch)

    def save_weights(
        self, folder: pathlib.Path, parameters: Mapping[str, jax.Array], dtype: np.dtype
    ) -> None:
        """Writes safetensors under the folder's own names, with tensors only generation uses.

        Names are the family's published ones where the folder has no weights.
        """
        source = weights.Checkpoint(self.folder, self.names)
        carried = ((name, source.slice(name)[:]) for name in source.unused())
        patch = self.config.vision.patch_size
        weights.save(
            folder, parameters, self.names, patch, dtype, carried=carried, spell=source.spelled
        )


def open_backbone(
    folder_or_hub_id: str, *, max_length: int, pinpoints: Sequence[Size] = ()
) -> Backbone:
    """Opens a local folder, or downloads a hub repository first.

    `max_length`: the most tokens of a row. `pinpoints`: image canvases (height, width) instead of
    the checkpoint's own.

    Raises:
      ValueError: config.json is missing, or names a family that is not supported.
    """
    folder = pathlib.Path(folder_or_hub_id).expanduser()
    if not folder.is_dir():
        folder = _download(folder_or_hub_id)
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} has no config.json, so it is not a Hugging Face model folder.")
    model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    family = FAMILIES.get(model_type)
    if family is None:
        raise ValueError(
            f'{folder}/config.json: model_type "{model_type}" is not supported; '
            f"supported: {', '.join(FAMILIES)}."
        )
    config = AutoConfig.from_pretrained(folder)
    preprocessor = family.make_preprocessor(str(folder), max_length=max_length, pinpoints=pinpoints)
    return Backbone(
        folder=folder,
        config=family.model_config(config, preprocessor),
        names=family.NAMES,
        preprocess=preprocessor,
    )


@functools.cache
def _download(hub_id: str) -> pathlib.Path:
    try:
        return pathlib.Path(snapshot_download(hub_id, allow_patterns=list(HUB_FILES)))
    except Exception as error:
        raise ValueError(
            f'config.backbone "{hub_id}" is not a local folder, and it cannot be downloaded from '
            f"the Hugging Face hub: {error}"
        ) from error
