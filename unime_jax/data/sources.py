"""Training sources on disk and their rows as examples, in MMEB-train's columns."""

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import tensorflow_datasets as tfds

from unime_jax import files
from unime_jax.batch import Example, Item
from unime_jax.data.images import MAX_PIXELS, ImageError, decode
from unime_jax.data.quarantine import BadExample
from unime_jax.data.strange_texts import text_fault
from unime_jax.operations import local_copies

IMAGE_MARKER = "<|image_1|>"


class Source(Protocol):
    """Random access to rows: what TFDS's `as_data_source` returns; a list of dicts will do."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


def open_dataset(folder: str | files.Path) -> dict[str, Source]:
    """Opens a prepared TFDS folder (a builder config, or one version of it): split name -> rows.

    A config folder stands for its highest version. Images stay encoded; TensorFlow is not needed.
    Of one in a bucket a local copy is opened, as ArrayRecord reads local files.
    Raises FileNotFoundError when there is no prepared dataset.
    """
    builder = tfds.builder_from_directory(local_copies.local_copy(dataset_folder(folder)))
    encoded = {
        name: tfds.decode.SkipDecoding()
        for name, feature in (builder.info.features or {}).items()
        if isinstance(feature, tfds.features.Image)
    }
    return {name: builder.as_data_source(name, decoders=encoded) for name in builder.info.splits}


def dataset_folder(folder: str | files.Path) -> files.Path:
    """The folder of one dataset version: `folder` itself, or the highest version in it.

    Raises FileNotFoundError when there is no prepared dataset.
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


def check_names(wanted: Iterable[str], available: Iterable[str]) -> None:
    """Raises ValueError for configured sources that the dataset does not have."""
    available = sorted(available)
    unknown = [name for name in wanted if name not in available]
    if not unknown:
        return
    hints = []
    for name in unknown:
        near = difflib.get_close_matches(name, available, n=3)
        hints.append(f"{name!r}" + (f" (did you mean {', '.join(near)}?)" if near else ""))
    raise ValueError(f"no such source: {'; '.join(hints)}. The dataset has {', '.join(available)}")


def to_example(
    source: str,
    row: Mapping[str, Any],
    default_id: str = "",
    max_pixels: int = MAX_PIXELS,
) -> Example:
    """Turns a row of MMEB-train's columns plus encoded images into an Example, or says why not.

    `qry`, `pos_text` and `neg_text` with `..._image_path` and `..._image`; the negatives' columns
    are lists, one value, or absent, and a negative without text and image is none. `default_id`
    names a row without an `id`; an image without a path is named by its content, because the path
    is part of an item's key.

    Raises BadExample for: no query or positive, text empty where there is no image, image bytes
    missing, an image that cannot be decoded or has more than `max_pixels`, text that is not UTF-8
    or absurdly long.
    """
    id = _text(row.get("id")) or default_id

    def item(side: str, text: Any, path: Any, image: Any) -> Item:
        try:
            name = _text(path) or (hashlib.sha256(image).hexdigest() if image else "")
            result = Item(_text(text), name, bytes(image) if image else None)
        except UnicodeDecodeError as error:
            raise BadExample(source, id, "", f"{side}: text is not UTF-8: {error}") from error
        reason = _fault(result, max_pixels)
        if reason:
            raise BadExample(source, id, result.image_path, f"{side}: {reason}")
        return result

    query = item("query", row.get("qry"), row.get("qry_image_path"), row.get("qry_image"))
    positive = row.get("pos_text"), row.get("pos_image_path"), row.get("pos_image")
    if not any(positive):
        raise BadExample(source, id, "", "no positive: pos_text and pos_image_path are empty")
    texts, paths, images = (
        _values(row.get(name)) for name in ("neg_text", "neg_image_path", "neg_image")
    )
    count = max(len(texts), len(paths), len(images))
    columns = (values + [""] * (count - len(values)) for values in (texts, paths, images))
    negatives = tuple(
        item(f"negative {i}", text, path, image)
        for i, (text, path, image) in enumerate(zip(*columns, strict=False))
        if text or path or image
    )
    return Example(source, id, query, item("positive", *positive), negatives)


def image_fault(image: bytes, max_pixels: int = MAX_PIXELS) -> str:
    """Why these bytes are no usable image, see `images.decode`; "" if they are."""
    try:
        decode(image, max_pixels=max_pixels)
    except ImageError as error:
        return f"image cannot be decoded: {error}"
    return ""


def _fault(item: Item, max_pixels: int) -> str:
    if fault := text_fault(item.text):
        return fault
    if item.image_path and not item.image:
        return "image is missing: there is a path but no bytes"
    if item.image:
        return image_fault(item.image, max_pixels)
    if not item.text.replace(IMAGE_MARKER, "").strip():
        return "empty text and no image"
    return ""


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.decode() if isinstance(value, bytes) else str(value)


def _values(column: Any) -> list:
    if column is None:
        return []
    return [column] if isinstance(column, str | bytes) else list(column)
