"""Models that are to be merged: opened, and held against each other before any weight is read."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from unime_jax import files, paths
from unime_jax.backbones import Backbone, open_backbone
from unime_jax.backbones.io import json_files
from unime_jax.config import MergeConfig

SHOWN = 8  # differences of one kind that a message lists
# Keys of config.json that differ between equal models.
_UNIMPORTANT = ("architectures", "dtype", "torch_dtype", "transformers_version", "unime_jax")


@dataclasses.dataclass(frozen=True)
class Part:
    """A model to be merged. `source`: what the config calls it."""

    source: str
    backbone: Backbone

    @functools.cached_property
    def abstract_model(self) -> tuple[nnx.GraphDef, paths.Parameters]:
        """The graph, with all settings of the model, and shapes of the parameters by path."""
        return paths.split(jax.eval_shape(self.backbone.make_model, jax.random.key(0)))


def open_part(source: str, settings: MergeConfig, *, weights: bool) -> Part:
    """Opens a folder, adapter or hub id, or the export in a work directory.

    Args:
      source: as the config names it.
      settings: of the merge.
      weights: whether a hub's are downloaded, too.

    Raises:
      ValueError: it is none of these, or not supported.
    """
    folder = files.as_path(source)
    is_workdir = (folder / "hf" / "self_check.json").exists()
    backbone = open_backbone(
        str(folder / "hf") if is_workdir else source,
        max_length=settings.max_length,
        processing=settings.processing,
        weights=weights,
    )
    return Part(source, backbone)


def check_alike(parts: Sequence[Part], base: Part | None) -> None:
    """Raises ValueError that lists how models differ from the first in more than their weights.

    The base must be of the same family, shapes and vocabulary; its inputs may be made otherwise.
    """
    lines = []
    for part in (*parts[1:], *([base] if base else [])):
        differences = list(_differences(parts[0], part, inputs=part is not base))
        role = "config.base" if part is base else "config.models"
        lines += [f"{role}: {part.source} and {parts[0].source}: {line}" for line in differences]
    if lines:
        listed = "\n".join(lines)
        raise ValueError(f"models of different kinds cannot be merged:\n{listed}")


def prompts_differ(parts: Sequence[Part]) -> list[str]:
    """A sentence for each model with other prompts for sentence-transformers than the first's."""
    first = parts[0]
    return [
        f"the prompts of {part.source} for sentence-transformers differ from those of"
        f" {first.source}, which the merged folder has"
        for part in parts[1:]
        if part.backbone.defaults.prompts != first.backbone.defaults.prompts
    ]


def _differences(a: Part, b: Part, *, inputs: bool) -> Iterator[str]:
    """Sentences on what differs, values of `b` first."""
    family = _config(a).get("model_type"), _config(b).get("model_type")
    if family[0] != family[1]:
        yield f"they are of the families {family[1]} and {family[0]}"
        return
    (graph_a, shapes_a), (graph_b, shapes_b) = a.abstract_model, b.abstract_model
    other_shapes = [
        f"{path} {_shape(shapes_b, path)} and {_shape(shapes_a, path)}"
        for path in sorted(shapes_a.keys() | shapes_b.keys())
        if _shape(shapes_a, path) != _shape(shapes_b, path)
    ]
    if other_shapes:
        yield f"the shapes of their parameters differ: {_listed(other_shapes)}"
    yield from _tokenizers(a, b)
    if not inputs:
        return
    if not other_shapes and graph_a != graph_b:
        changed = files.changes(_config(b), _config(a))
        named = [
            f"{key} {both[0]} and {both[1]}"
            for key, both in changed.items()
            if not any(part in _UNIMPORTANT for part in key.split("."))
        ]
        yield f"the settings of their models differ: {_listed(named)}"
    yield from _processing(a, b)


def _tokenizers(a: Part, b: Part) -> Iterator[str]:
    first, second = (_tokenizer(part) for part in (a, b))
    if first["vocabulary"] != second["vocabulary"]:
        tokens = sorted(dict(first["vocabulary"].items() ^ second["vocabulary"].items()))
        yield (
            f"the vocabularies of their tokenizers differ in {len(tokens)} tokens, such as"
            f" {_listed([repr(token) for token in tokens])}"
        )
        return
    keys = [key for key in first if first[key] != second.get(key)]
    if keys:
        yield f"their tokenizers differ in {_listed(keys)} of tokenizer.json"


def _processing(a: Part, b: Part) -> Iterator[str]:
    """How items become rows."""
    first, second = (dataclasses.asdict(part.backbone.processing) for part in (a, b))
    first["max_length"], second["max_length"] = (
        part.backbone.preprocess.prompt.max_length for part in (a, b)
    )
    yield from (
        f"{key} of their processing is {second[key]!r} and {value!r}; config."
        f"{'' if key == 'max_length' else 'processing.'}{key} sets it for all"
        for key, value in first.items()
        if value != second[key]
    )
    for what, of in (
        ("preprocessing", lambda part: part.backbone.preprocess),
        ("prompt", lambda part: part.backbone.preprocess.prompt),
    ):
        first, second = _settings(of(a)), _settings(of(b))
        keys = [key for key, value in first.items() if value != second.get(key)]
        if keys:
            yield f"their {what} differs in " + _listed(
                [f"{key}: {second.get(key)!r} and {first[key]!r}" for key in keys]
            )


def _settings(preprocess: Any) -> dict[str, Any]:
    """Fields of a preprocessor or prompt, but for what is compared by itself."""
    compared = ("prompt", "tokenizer", "max_length", "vocab_size")
    return {
        field.name: getattr(preprocess, field.name)
        for field in dataclasses.fields(preprocess)
        if field.name not in compared
    }


def _tokenizer(part: Part) -> dict[str, Any]:
    """What decides token ids: the vocabulary, and the parts of tokenizer.json."""
    tokenizer = part.backbone.preprocess.prompt.tokenizer
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    for key in ("truncation", "padding", "version"):
        content.pop(key, None)
    return {"vocabulary": tokenizer.get_vocab()} | content


def _config(part: Part) -> Mapping[str, Any]:
    return json_files.read(part.backbone.folder / "config.json")


def _shape(shapes: paths.Parameters, path: str) -> tuple[int, ...] | str:
    return tuple(shapes[path].shape) if path in shapes else "none"


def _listed(lines: Sequence[str]) -> str:
    more = f", and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more
