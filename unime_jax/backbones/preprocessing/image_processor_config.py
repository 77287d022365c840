"""Settings of a folder's image processor: precedence of its files, and copies in exports.

transformers 5 reads `image_processor` in processor_config.json, and preprocessor_config.json only
where that key is missing. A missing key has the default of its class, not the value of the other
file, and null is no default. transformers 4 reads preprocessor_config.json alone. The files are
read here directly: transformers' own classes want torch or torchvision for some families.
"""

import json
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from absl import logging

from unime_jax.backbones.io import json_files

FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
NESTED = "image_processor"  # its key in PROCESSOR_FILE
LEAST, MOST = "shortest_edge", "longest_edge"  # areas in Qwen2-VL's `size`
AREAS = {"min_pixels": LEAST, "max_pixels": MOST}  # Qwen2-VL's older keys, which overrule `size`
DEFAULT_AREA = {LEAST: 56 * 56, MOST: 28 * 28 * 1280}
KEYS = (  # they decide pixels, or the number of image tokens
    "crop_size",
    "do_center_crop",
    "do_convert_rgb",
    "do_normalize",
    "do_rescale",
    "do_resize",
    "image_grid_pinpoints",
    "image_mean",
    "image_std",
    "merge_size",
    "num_crops",
    "patch_size",
    "resample",
    "rescale_factor",
    "size",
    "temporal_patch_size",
)
TYPE = "image_processor_type"
IDENTITY = ("auto_map", "processor_class")  # classes that load the file, no settings


def read(
    folder: pathlib.Path, defaults: Mapping[str, Any], *, types: Collection[str] | None
) -> tuple[pathlib.Path, dict[str, Any]]:
    """The file that takes precedence, and its settings.

    A warning names two files that disagree, with both values.

    Args:
      folder: the checkpoint.
      defaults: values of transformers' class for keys that the file lacks.
      types: names of supported classes, without "Fast" or "Pil"; None: any.

    Raises:
      ValueError: there is no such file, it is for another class, or lacks a value.
    """
    files = sources(folder)
    if not files:
        raise ValueError(
            f"{folder} has no {FILE}, and no {PROCESSOR_FILE} with {NESTED!r}: copy those of the"
            " checkpoint it was made from."
        )
    (name, own), *others = files
    kind = _kind(own)
    if types is not None and kind is not None and kind not in types:
        raise ValueError(
            f"{folder / name}: {TYPE} is {own[TYPE]!r}; this family has {' or '.join(types)}"
        )
    settings = _filled(own, defaults)
    for key in defaults:
        if settings[key] is None and key != "do_center_crop":  # None crops nothing
            raise ValueError(
                f"{folder / name}: {key} is null, which transformers takes for nothing, not for its"
                " default: give a value, or delete the key"
            )
    for other, theirs in others:
        _warn_of_differences(folder, (name, settings), (other, _filled(theirs, defaults)))
    return folder / name, settings


def sources(folder: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
    """Names and contents of the existing files; the first takes precedence.

    Raises:
      ValueError: one of them is no JSON object.
    """
    nested = json_files.read(folder / PROCESSOR_FILE).get(NESTED)
    if not isinstance(nested, dict | None):
        raise ValueError(f"{folder / PROCESSOR_FILE}: {NESTED} is {nested!r}; it must be an object")
    files = [] if nested is None else [(PROCESSOR_FILE, nested)]
    if (folder / FILE).exists():
        files.append((FILE, json_files.read(folder / FILE)))
    return files


def check_processor(folder: pathlib.Path, expected: Mapping[str, Any]) -> None:
    """Warns if processor_config.json asks for other image tokens than the model has features.

    `expected` follows from config.json. transformers' processor believes the file, and refuses
    images or crops them.
    """
    content = json_files.read(folder / PROCESSOR_FILE)
    wrong = [
        f"{key} is {content[key]!r}, and by config.json {value!r}"
        for key, value in expected.items()
        if key != "processor_class" and key in content and content[key] != value
    ]
    if wrong:
        logging.warning(
            "%s: %s. Here config.json counts, and exports are put right; transformers' processor"
            " makes another number of image tokens than the model has features.",
            folder / PROCESSOR_FILE,
            "; ".join(wrong),
        )


def write(
    folder: pathlib.Path, *, settings: Mapping[str, Any], processor: Mapping[str, Any]
) -> None:
    """Writes the same settings to all files of an export, as each library reads another.

    Args:
      folder: has copies of a checkpoint's files.
      settings: of the image processor, overriding those of the file that takes precedence.
      processor: keys of processor_config.json that the model needs.
    """
    files = sources(folder)
    content = json_files.read(folder / PROCESSOR_FILE)
    if processor or content:
        kind = {key: content[key] for key in IDENTITY if key in content}
        content |= dict(processor) | kind
    if files:
        own = files[0][1] | dict(settings)
        for key in IDENTITY:
            values = [source[key] for _, source in files if source.get(key)]
            own |= {key: values[0]} if values else {}
        if own.get(TYPE):  # transformers 4 has no class "...Pil"; 5 finds the backend itself
            own[TYPE] = own[TYPE].removesuffix("Pil")
        own = _both_spellings(own)
        json_files.write(folder / FILE, own)
        if content.get(NESTED) is not None:
            content[NESTED] = own
    if content:
        json_files.write(folder / PROCESSOR_FILE, content)


def area(settings: Mapping[str, Any]) -> dict[str, int] | None:
    """Qwen2-VL's `size`, overruled by `min_pixels` and `max_pixels`; None: it is no area."""
    size = settings.get("size") or DEFAULT_AREA
    if not isinstance(size, Mapping) or not {LEAST, MOST} <= set(size):
        return None
    given = {key: settings.get(older) for older, key in AREAS.items()}
    return {key: int(size[key] if value is None else value) for key, value in given.items()}


def _filled(own: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with defaults for missing keys, in the form that transformers 5 gives them."""
    settings = dict(defaults) | dict(own)
    for key, names in (("size", ("shortest_edge",)), ("crop_size", ("height", "width"))):
        value = settings.get(key)
        if isinstance(value, int):
            settings[key] = dict.fromkeys(names, value)
        elif isinstance(value, Sequence):
            settings[key] = dict(zip(("height", "width"), value))
    for key in ("image_mean", "image_std"):
        if isinstance(settings.get(key), int | float):
            settings[key] = [settings[key]] * 3
    return settings


def _both_spellings(own: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose area is in `size` and in the older keys, for each version of transformers."""
    size = own.get("size")
    if isinstance(size, Mapping) and {LEAST, MOST} <= set(size):
        size = area(own)
        assert size is not None
        return dict(own) | {"size": size} | {older: size[key] for older, key in AREAS.items()}
    return dict(own)


def _warn_of_differences(
    folder: pathlib.Path,
    counts: tuple[str, Mapping[str, Any]],
    other: tuple[str, Mapping[str, Any]],
) -> None:
    pairs = [_comparable(settings) for _, settings in (counts, other)]
    differing = [
        f"{key} is {pairs[0][key]!r} and {pairs[1][key]!r}"
        for key in (*KEYS, TYPE)
        if pairs[0][key] != pairs[1][key]
    ]
    if differing:
        logging.warning(
            "%s: %s and %s disagree: %s. The first counts, as in transformers 5; transformers 4"
            " reads the second. Delete the wrong one, or make them equal.",
            folder,
            f"{counts[0]} ({NESTED})",
            other[0],
            "; ".join(differing),
        )


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in a form whose values are equal if and only if their meaning is."""
    values = {key: settings.get(key) for key in KEYS} | {TYPE: _kind(settings)}
    if "merge_size" in settings:  # Qwen2-VL's
        values["size"] = area(settings) or values["size"]
    return json.loads(json.dumps(values))


def _kind(settings: Mapping[str, Any]) -> str | None:
    name = settings.get(TYPE)
    return name.removesuffix("Fast").removesuffix("Pil") if name else None
