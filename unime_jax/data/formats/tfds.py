"""Data that TensorFlow Datasets has prepared as ArrayRecord, read without TensorFlow."""

from collections.abc import Mapping
from typing import Any

import tensorflow_datasets as tfds

from unime_jax import files
from unime_jax.operations import local_copies


class Encoded(tfds.decode.SkipDecoding):
    """A decoder that hands over files as they are, also those of lists and of lists of lists."""

    def decode_batch_example_np(self, serialized_example: Any) -> list[bytes]:
        return list(serialized_example)

    def decode_ragged_example_np(self, serialized_example: Any) -> Any:
        return serialized_example


def open_folder(folder: str | files.Path) -> Mapping[str, Any]:
    """The data source of each split of a builder config's folder, or of one version of it.

    A config folder stands for its highest version. Images stay encoded. Of a folder in a bucket a
    local copy is opened, as ArrayRecord reads local files.

    Raises:
      FileNotFoundError: there is no prepared dataset.
    """
    builder = tfds.builder_from_directory(local_copies.local_copy(version_folder(folder)))
    decoders = _decoders(builder.info.features)
    return {name: builder.as_data_source(name, decoders=decoders) for name in builder.info.splits}


def _decoders(feature: Any) -> Any:
    """`Encoded` for every image of a feature, in the feature's structure; None: it has none."""
    if isinstance(feature, tfds.features.Image):
        return Encoded()
    if isinstance(feature, tfds.features.FeaturesDict):
        named = {name: _decoders(inner) for name, inner in feature.items()}
        return {name: decoder for name, decoder in named.items() if decoder} or None
    if isinstance(feature, tfds.features.Sequence) and not isinstance(
        feature, tfds.features.Dataset
    ):
        return _decoders(feature.feature)
    return None


def version_folder(folder: str | files.Path) -> files.Path:
    """The folder of one dataset version: `folder` itself, or the highest version in it.

    Raises:
      FileNotFoundError: there is no prepared dataset.
    """
    folder = files.as_path(folder)
    versions = [path.parent for path in folder.glob("*/dataset_info.json")]
    if (folder / "dataset_info.json").exists():
        versions = [folder]
    if not versions:
        raise FileNotFoundError(
            f"no prepared dataset in {folder}: expected dataset_info.json there or in a version "
            "folder such as 1.0.0; build it first (see data_pipelines/)"
        )
    return max(versions, key=lambda path: tfds.core.Version(path.name))
