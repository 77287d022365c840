"""Models of sentence-transformers in our evaluation."""

import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from absl import logging
from huggingface_hub import snapshot_download
from jaxtyping import Float, Float32

from unime_jax import files
from unime_jax.backbones.io.fingerprint import hashes
from unime_jax.batch import Item
from unime_jax.evaluation.encoding.item_table import Encode
from unime_jax.evaluation.peer import Peer
from unime_jax.integrations.peer_inputs import (
    PeerInput,
    by_modality,
    encode_windows,
    refused_both,
    sum_of_modalities,
    versions,
)

try:
    from sentence_transformers import SentenceTransformer
except ImportError as error:
    raise ImportError(
        f"unime_jax.integrations.sentence_transformers needs sentence-transformers ({error}): pip"
        " install 'unime_jax[eval]'"
    ) from error

LIBRARIES = ("sentence-transformers", "transformers", "torch")
HUB_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"]  # no pickled weights
NO_CONTENT = ("README.md", ".gitattributes", "self_check")  # beginnings of names


def encoder(model: SentenceTransformer, *, batch_size: int, late_fusion: bool = False) -> Encode:
    """An encode function of an evaluation around a model of sentence-transformers.

    Texts are as the data have them, but for image markers (`peer_inputs.peer_input`): no prompt of
    the model's is used, nor its `truncate_dim`. A model of texts takes a text that names a file as
    a text. The function raises ValueError for an item with both text and images if the model does
    not take such ones, and for a modality that it has not; the message names the item.

    Args:
      batch_size: items of a batch; the images of 16 batches are in memory.
      late_fusion: an item with both is the sum of the unit vectors of its images and its
        text, for a model that takes one at a time, or takes both.
    """
    takes_images = model.supports("image")
    takes_both = model.supports(("image", "text"))

    def encode_alike(inputs: Sequence[PeerInput]) -> Float[np.ndarray, "n D"]:
        rows = [_row(given) if takes_images else given.text for given in inputs]
        with model.truncate_embeddings(None):
            vectors = model.encode(rows, prompt="", batch_size=batch_size, show_progress_bar=False)
        return np.asarray(vectors, np.float32)

    def encode_inputs(inputs: Sequence[PeerInput]) -> Float32[np.ndarray, "n D"]:
        for given in inputs:
            if given.images and not takes_images:
                raise ValueError(f"{given.name}: this model embeds texts only, no images")
            if given.has_both and not takes_both:
                raise refused_both(given)
        return by_modality(inputs, encode_alike)

    def encode(items: Sequence[Item]) -> Float32[np.ndarray, "n D"]:
        def fused(inputs: Sequence[PeerInput]) -> Float32[np.ndarray, "n D"]:
            return sum_of_modalities(inputs, encode_inputs)

        return encode_windows(items, fused if late_fusion else encode_inputs, batch_size=batch_size)

    return encode


def open_peer(
    folder_or_hub_id: str,
    *,
    revision: str | None,
    max_length: int | None,
    dtype: Literal["float32", "bfloat16"],
    batch_size: int,
    late_fusion: bool,
) -> Peer:
    """A folder or hub id of sentence-transformers, for an evaluation; none of its code is run.

    Args:
      revision: of a hub id: branch, tag or commit.
      max_length: the most tokens of a text; None: as the folder says.
      batch_size, late_fusion: as of `encoder`.

    Raises:
      ValueError: it is no folder of sentence-transformers, or cannot be downloaded.
    """
    folder = _folder(folder_or_hub_id, revision)
    model = SentenceTransformer(str(folder), model_kwargs={"dtype": dtype})
    if max_length is not None:
        model.max_seq_length = max_length
    _say_what_is_not_used(folder_or_hub_id, model)
    used = versions(*LIBRARIES)
    provenance: dict[str, Any] = {
        "library": "sentence_transformers",
        "versions": used,
        "model": _digests(folder),
        "max_length": model.max_seq_length,
        "dtype": dtype,
        "late_fusion": late_fusion,
    }
    encode = encoder(model, batch_size=batch_size, late_fusion=late_fusion)
    shown = {"dtype": dtype, "devices": str(model.device), **used}
    with model.truncate_embeddings(None):
        width = model.get_embedding_dimension()
    return Peer(folder_or_hub_id, encode, provenance, shown, width)


def check_folder(folder_or_hub_id: str, revision: str | None) -> None:
    """Raises ValueError for a local folder that is not of sentence-transformers; a hub id passes.

    Without modules.json sentence-transformers would pool by a mean that nobody has trained.
    """
    folder = files.as_path(folder_or_hub_id)
    if not folder.is_dir():
        return
    if revision is not None:
        raise ValueError(f"revision is {revision!r}, but {folder} is a folder here: leave it out")
    if not (folder / "modules.json").exists():
        raise ValueError(
            f"{folder} has no modules.json, so it is not a model of sentence-transformers; evaluate"
            " it with config.library='unime_jax' if its family is one of ours"
        )


def _folder(folder_or_hub_id: str, revision: str | None) -> pathlib.Path:
    check_folder(folder_or_hub_id, revision)
    folder = pathlib.Path(folder_or_hub_id).expanduser()
    if not folder.is_dir():
        try:
            folder = pathlib.Path(
                snapshot_download(folder_or_hub_id, revision=revision, allow_patterns=HUB_FILES)
            )
        except Exception as error:
            raise ValueError(
                f'"{folder_or_hub_id}" is not a local folder, and it cannot be downloaded from the'
                f" Hugging Face hub: {error}"
            ) from error
        check_folder(str(folder), None)
    return folder


def _digests(folder: pathlib.Path) -> dict[str, str]:
    """Hashes of a folder's files by name, but for what no embedding depends on."""
    named = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return hashes(
        {
            name: path
            for name, path in named.items()
            if path.is_file() and not name.startswith(NO_CONTENT)
        }
    )


def _say_what_is_not_used(name: str, model: SentenceTransformer) -> None:
    ignored = []
    if model.default_prompt_name is not None:
        ignored.append(f"its default prompt {model.prompts[model.default_prompt_name]!r}")
    if model.truncate_dim is not None:
        ignored.append(f"its truncate_dim {model.truncate_dim}")
    if ignored:
        logging.warning("of %s, an evaluation does not use %s", name, " and ".join(ignored))


def _row(given: PeerInput) -> dict[str, Any]:
    row: dict[str, Any] = {} if given.text is None else {"text": given.text}
    if given.images:
        row["image"] = given.images[0] if len(given.images) == 1 else list(given.images)
    return row
