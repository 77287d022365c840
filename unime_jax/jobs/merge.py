"""Merge models of one family into one folder: linear, slerp, TIES or DARE-TIES.

One process does it, tensor by tensor. The folder appears when it is whole: merged weights, what an
export has beside them, a self-check, a model card, and merge.json, which says what it is made of.
"""

import dataclasses
import io
import json

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from unime_jax import config, config_reader, files, sharding
from unime_jax.backbones.io.fingerprint import fingerprint
from unime_jax.data.user_inputs import UserInput
from unime_jax.export import folder as hf_folder
from unime_jax.export import merged_weights, model_card, self_check
from unime_jax.export.merge_parts import Part, check_alike, open_part, prompts_differ
from unime_jax.jobs import preflight, preflight_models
from unime_jax.operations import compilation_cache, disk_errors, workdir_lock
from unime_jax.operations.config_file import write_config

RECORD = "merge.json"


def run(config_dict: ConfigDict, workdir: files.Path) -> None:
    """Writes <workdir>/hf; an earlier one is replaced when the new one is whole.

    Raises:
      ValueError: the config does not make sense, or the models cannot be merged.
      RuntimeError: the merged model fails its check, or a disk takes no more.
    """
    settings = config_reader.read(config.MergeConfig, config_dict.to_dict())
    preflight.check(
        lambda: sharding.make_mesh(1, -1, 1, jax.local_devices()),
        workdir,
        lambda problems: preflight_models.check_merge(settings, workdir, problems),
    )
    with (
        disk_errors.explained(workdir),
        workdir_lock.owned(workdir, "export.lock", what="exports into"),
    ):
        compilation_cache.use_for_job(settings.compilation_cache, workdir)
        write_config(workdir, config_dict)
        merge(settings, workdir)


def merge(settings: config.MergeConfig, workdir: files.Path) -> None:
    """Merges models that `preflight_models.check_merge` has looked at."""
    parts = [open_part(source, settings, weights=True) for source in settings.models]
    base = open_part(settings.base, settings, weights=True) if settings.base else None
    check_alike(parts, base)
    checkpoints = [merged_weights.open_weights(part.backbone) for part in parts]
    start = merged_weights.open_weights(base.backbone) if base else None
    first = parts[0].backbone
    dtype = np.dtype(settings.dtype or merged_weights.dtype_of(first, checkpoints))
    commits = {k: v for part in parts for k, v in part.backbone.commits.items()}
    warnings = prompts_differ(parts)
    target = workdir / "hf"
    with files.replacing(target, last="config.json") as partial:
        tally = merged_weights.write(partial, first, checkpoints, start, settings, dtype)
        if tally.left_out:
            warnings.append(
                f"{len(tally.left_out)} tensors that embeddings do not need are left out, as not"
                f" all models have them alike: {', '.join(tally.left_out[:8])}"
            )
        hf_folder.write_beside_weights(
            partial,
            dataclasses.replace(first, commits=commits),
            dtype,
            prompts=dict(first.defaults.prompts),
        )
        record = _record(settings, parts, base, tally, dtype)
        (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        items = self_check.first_check(
            partial,
            self_check.inputs_of(first.adapter or first.folder) or _probes(parts[0]),
            dtype=dtype,
            computed_in=np.dtype(settings.check_dtype),
        )
        model_card.write_merged(
            partial,
            target.name,
            workdir,
            settings,
            first,
            dtype=dtype,
            items=items,
            warnings=warnings,
        )
        if settings.verify:
            self_check.repeat_in_a_new_process(partial)
    for warning in warnings:
        logging.warning("%s: %s", target, warning)
    logging.info(
        "%s is the merge of %d models: %d tensors merged, %d that are equal in all copied",
        target,
        len(parts),
        tally.merged,
        tally.copied,
    )


def _record(
    settings: config.MergeConfig,
    parts: list[Part],
    base: Part | None,
    tally: merged_weights.Tally,
    dtype: np.dtype,
) -> dict[str, object]:
    """Content of merge.json: the method and, by their hashes, the models."""
    weights = settings.weights or (1.0,) * len(parts)
    method: dict[str, object] = {"method": settings.method, "dtype": dtype.name}
    if base:
        keys = ("density", "normalize", "scale", "seed")
        method |= {key: getattr(settings, key) for key in keys}
    return method | {
        "tensors": dataclasses.asdict(tally),
        "models": [
            {"weight": weight} | _described(part)
            for part, weight in zip(parts, weights, strict=True)
        ],
        "base": _described(base) if base else None,
    }


def _described(part: Part) -> dict[str, object]:
    backbone = part.backbone
    hashes = fingerprint(backbone)
    return {
        "source": part.source,
        "folder": str(backbone.folder),
        "adapter": str(backbone.adapter) if backbone.adapter else None,
        "commits": dict(backbone.commits),
        "files": {name: x for name, x in hashes.items() if not name.startswith("self_check")},
    }


def _probes(part: Part) -> list[UserInput]:
    """Texts, an image and both at once, for models that were not exported from here."""
    texts: list[UserInput] = ["A plain text without any image.", "The sea is calm today."]
    if not part.backbone.layout.patches:
        return texts
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    image = stream.getvalue()
    question = "<|image_1|>\nWhat is in the image?"
    return [*texts, {"text": question, "image": image}, {"image": image}]
