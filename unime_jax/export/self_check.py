"""Self-check of an export: the folder, read back from disk, is the model that was trained.

This package reads it back with its weights. transformers makes the same inputs, by its own rules of
which file counts (`transformers_check`).

`python -m unime_jax.export.self_check FOLDER` repeats it later or elsewhere, from the inputs and
embeddings that the export left in self_check.json.
"""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, logging
from jax.sharding import Mesh

from unime_jax import files, sharding
from unime_jax.backbones import Backbone, open_backbone
from unime_jax.batch import Item
from unime_jax.data import images, inference_shapes
from unime_jax.data.inference_shapes import Ladder
from unime_jax.data.shapes import BatchShapes
from unime_jax.data.user_inputs import UserInput, to_item
from unime_jax.export import row_facts, transformers_check
from unime_jax.inference.encode import Encoder, make_encoder
from unime_jax.models.forward import make_encode
from unime_jax.models.inference import default_execution, targets
from unime_jax.models.vlm import Execution
from unime_jax.operations import compilation_cache, local_copies

FILE = "self_check.json"  # prompts, as the tokenizer gets them, and embeddings: for anyone
NEARLY_ONE = 0.99  # cosine of inputs that have nothing in common
ITEMS = "self_check_items.json"  # the texts that the prompts were made of


def self_check(
    folder: files.Path,
    items: Sequence[Item],
    trained: Encoder,
    trained_as: Backbone,
    *,
    shapes: BatchShapes | Ladder,
    mesh: Mesh,
    execution: Execution,
    max_length: int,
    dtype: np.dtype,
) -> float:
    """Reads an export back, compares its embeddings with the trained model's, and records them.

    Writes <folder>/self_check.json with the inputs as the model gets them, media beside it.
    `trained_as` is the backbone whose preprocessing the trained model has.

    Returns:
      the lowest cosine between exported and trained embeddings of the items.

    Raises:
      RuntimeError: they differ by more than the rounding of `dtype` explains, the embeddings of
        different items do not, or transformers makes other inputs of the folder's files.
    """
    copy = local_copies.local_copy(folder)
    backbone = open_backbone(str(copy), max_length=max_length)
    graph, wanted = targets(backbone.make_model, mesh, jnp.dtype(dtype))
    encode = make_encode(graph, execution)
    encoder = make_encoder(encode, ({}, backbone.load(wanted)), backbone.preprocess, shapes, mesh)
    expected, embeddings = trained(items), encoder(items)
    cosine = lowest_cosine(expected, embeddings)
    bound = lowest_allowed(dtype, execution.dtype)
    if not cosine >= bound:
        before, now = ([row_facts.facts(x, item) for item in items] for x in (trained_as, backbone))
        raise RuntimeError(
            f"{folder} does not reproduce the trained model: lowest cosine {cosine:.6f} over "
            f"{len(items)} inputs, at least {bound} was expected. {_named(before, now)} The export"
            " is kept for study."
        )
    _check_different(embeddings, bound, folder)
    transformers_check.check(copy, backbone, items)  # on all, so that none waits for another
    if jax.process_index() == 0:
        facts = [row_facts.facts(backbone, item) for item in items]
        _write(folder, items, embeddings, facts, dtype, execution.dtype)
    logging.info("export %s reproduces the trained model: lowest cosine %.7f", folder, cosine)
    return cosine


def first_check(
    folder: pathlib.Path, inputs: Sequence[UserInput], *, dtype: np.dtype, computed_in: np.dtype
) -> list[Item]:
    """Runs a folder that no trained model can be compared with, and records its embeddings.

    Args:
      folder: whole but for what is written here, <folder>/self_check.json and images beside it.
      inputs: what is embedded.
      dtype: of the weights in the folder.
      computed_in: dtype that the model is run in.

    Returns:
      the inputs as items.

    Raises:
      RuntimeError: all inputs have one embedding, or transformers makes other inputs of the
        folder's files.
      ValueError: an embedding is not finite.
    """
    items = [to_item(given) for given in inputs]
    backbone, encoder = _opened(folder, computed_in, len(items))
    embeddings = encoder(items)
    _check_different(embeddings, lowest_allowed(dtype, computed_in), folder)
    transformers_check.check(folder, backbone, items)
    facts = [row_facts.facts(backbone, item) for item in items]
    _write(folder, items, embeddings, facts, dtype, computed_in)
    return items


def inputs_of(folder: pathlib.Path) -> list[UserInput]:
    """Inputs of the self-check in an exported folder, media as paths; []: it has none."""
    if not all((folder / name).exists() for name in (FILE, ITEMS)):
        return []
    record, origin = (json.loads((folder / name).read_text()) for name in (FILE, ITEMS))
    return [
        {"text": text, "image": [folder / name for name in _images_of(entry)]}
        | ({"video": [folder / name for name in entry["videos"]]} if "videos" in entry else {})
        for text, entry in zip(origin["texts"], record["inputs"], strict=True)
    ]


def repeat(folder: files.Path) -> float:
    """Lowest cosine of the embeddings in self_check.json with those of the folder now.

    Raises:
      RuntimeError: it is lower than rounding explains, prompts have changed, all inputs have one
        embedding, or transformers makes other inputs of the folder's files.
      ValueError: the folder was not exported from here.
    """
    folder = local_copies.local_copy(folder)
    for name in (FILE, ITEMS):
        if not (folder / name).exists():
            raise ValueError(f"{folder} has no {name}; it was not exported by unime_jax")
    record, origin = (json.loads((folder / name).read_text()) for name in (FILE, ITEMS))
    items = [to_item(given) for given in inputs_of(folder)]
    backbone, encoder = _opened(folder, np.dtype(np.float32), len(items))
    now = [row_facts.facts(backbone, item) for item in items]
    for fact, entry in zip(now, record["inputs"], strict=True):
        if fact["prompt"] != entry["text"]:
            raise RuntimeError(
                f"{folder}: the prompt differs: it words an item as {fact['prompt']!r}; when it was"
                f" exported, it was {entry['text']!r}"
            )
    expected = np.array(record["embeddings"])
    embeddings = encoder(items)
    cosine = lowest_cosine(expected, embeddings)
    bound = lowest_allowed(np.dtype(record["dtype"]), np.dtype(origin["computed_in"]))
    if not cosine >= bound:
        raise RuntimeError(
            f"{folder} does not give the embeddings of its {FILE}: lowest cosine {cosine:.6f} over"
            f" {len(items)} inputs, at least {bound} was expected."
            f" {_named(origin.get('facts'), now)}"
        )
    _check_different(np.array(record["embeddings"]), bound, folder)
    transformers_check.check(folder, backbone, items)
    return cosine


def _opened(folder: files.Path, dtype: np.dtype, rows: int) -> tuple[Backbone, Encoder]:
    """A folder by nothing but its files, on this process's devices, as `Embedder` runs it."""
    compilation_cache.use_for_library()
    backbone = open_backbone(str(folder), max_length=None)
    mesh = sharding.make_mesh(1, -1, 1, jax.local_devices())
    graph, wanted = targets(backbone.make_model, mesh, jnp.dtype(dtype))
    ladder = Ladder(
        backbone.layout,
        sharding.row_shards(mesh),
        inference_shapes.power_of_two(rows),
        backbone.preprocess.prompt.max_length,
    )
    encode = make_encode(graph, default_execution(jnp.dtype(dtype)))
    parameters = backbone.load(wanted)
    return backbone, make_encoder(encode, ({}, parameters), backbone.preprocess, ladder, mesh)


def repeat_in_a_new_process(folder: files.Path) -> None:
    """`repeat` in a fresh process, which shares no state, on the CPU: a TPU has one owner.

    Raises:
      RuntimeError: it failed; the message has its output.
    """
    done = subprocess.run(
        [sys.executable, "-m", "unime_jax.export.self_check", str(folder)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{folder} failed its check in a new process:\n{done.stderr[-4000:]}")


def _named(before: Sequence[row_facts.Facts] | None, now: Sequence[row_facts.Facts]) -> str:
    """What differs in how inputs are read, as a sentence; `before` is None of older exports."""
    if before is None:
        return "How its inputs were read then is not recorded."
    differences = row_facts.differing(before, now)
    if differences:
        return f"It reads inputs otherwise: {'; '.join(differences)}."
    return (
        "End token, final norm, resize and prompt are what they were, so it is the weights or the"
        " program that differ."
    )


def lowest_cosine(expected: np.ndarray, actual: np.ndarray) -> float:
    """Lowest cosine of rows with the same number, which have unit length."""
    return float(np.min(np.sum(expected * actual, axis=1)))


def _check_different(embeddings: np.ndarray, bound: float, folder: files.Path) -> None:
    """Refuses embeddings that are all the same: they would agree with themselves in any check.

    Raises:
      RuntimeError: no two embeddings differ by more than the check lets pass.
    """
    lowest = float(np.min(embeddings @ embeddings.T))
    if len(embeddings) > 1 and lowest >= bound:
        raise RuntimeError(
            f"{folder}: the model gives all {len(embeddings)} inputs of the self-check one "
            f"embedding (the lowest cosine of two is {lowest:.6f}), so it has learnt nothing, or "
            "lost it. The export is kept for study."
        )
    if len(embeddings) > 1 and lowest >= NEARLY_ONE:
        logging.warning(
            "%s: the embeddings of different inputs are nearly one, the lowest cosine of two is "
            "%.4f: the model has collapsed",
            folder,
            lowest,
        )


def lowest_allowed(*dtypes: np.dtype) -> float:
    """Lowest cosine of equal vectors after rounding in these types."""
    return 0.999 if jnp.dtype("bfloat16") in dtypes else 0.99999


def _images_of(entry: Mapping[str, Any]) -> list[str]:
    """Images of a recorded input: "image" names one or none, "images" several."""
    if "images" in entry:
        return list(entry["images"])
    return [entry["image"]] if entry["image"] else []


def _write(
    folder: files.Path,
    items: Sequence[Item],
    embeddings: np.ndarray,
    facts: Sequence[row_facts.Facts],
    dtype: np.dtype,
    computed_in: np.dtype,
) -> None:
    inputs = []
    for i, item in enumerate(items):
        names: dict[str, list[str]] = {"image": [], "clip": []}
        for number, media in enumerate(item.media):
            assert media.data is not None  # it was embedded
            place = f"_{number}" if number else ""
            # A path may end in anything; what a clip is, its first bytes say.
            suffix = images.suffix(media.data) if media.kind == "image" else ".clip"
            names[media.kind].append(f"self_check_{i}{place}{suffix}")
            files.write_whole(folder / names[media.kind][-1], media.data)
        pictures, clips = names.values()
        several = {"images": pictures} if len(pictures) > 1 else {"image": (*pictures, None)[0]}
        videos = {"videos": clips} if clips else {}
        inputs.append({"text": facts[i]["prompt"], **several, **videos})
    record = {
        "dtype": np.dtype(dtype).name,
        "inputs": inputs,
        "embeddings": [[float(x) for x in row] for row in embeddings],
    }
    origin = {
        "computed_in": np.dtype(computed_in).name,
        "texts": [item.text for item in items],
        "facts": list(facts),
    }
    for name, content in ((FILE, record), (ITEMS, origin)):
        files.write_whole(folder / name, json.dumps(content) + "\n")


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise app.UsageError("one argument: the exported folder")
    cosine = repeat(files.as_path(argv[1]))
    logging.info("%s gives the embeddings of its %s: cosine %.7f", argv[1], FILE, cosine)


if __name__ == "__main__":
    app.run(main)
