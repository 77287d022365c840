"""Provenance of an evaluation's data: all but the model that results depend on."""

import dataclasses
import hashlib
import json
from typing import Any

from unime_jax import config, files
from unime_jax.data.embedding_store import Embeddings
from unime_jax.data.formats import fingerprint
from unime_jax.evaluation.stored import image_files
from unime_jax.evaluation.suite import Suite
from unime_jax.evaluation.tasks import distillation, retrieval
from unime_jax.evaluation.tasks.captions import CAPTION, VIDEO


def of_data(settings: config.EvaluateConfig, folder: files.Path, suite: Suite) -> dict[str, Any]:
    """Settings and fingerprints of data by key, as JSON; benchmark sets are left out.

    Those have a provenance each, as an evaluation may be given more of them. `folder` is
    `data.folder`. Image files are looked at, which takes a while where there are many.
    """
    chosen = settings.evaluation
    names = {"mmeb": chosen.mmeb, "composition": chosen.composition}
    provenance: dict[str, Any] = {
        "image_prompt": chosen.image_prompt,
        "limit": chosen.limit,
        "instructions": chosen.instructions,
        **{key: [name, fingerprint(folder / name)] for key, name in names.items() if name},
    }
    if name := settings.data.eval:
        provenance |= {
            "eval": [name, fingerprint(folder / name)],
            "columns": dict(settings.data.columns),
        }
    for task in suite.tasks:
        if isinstance(task, distillation.Task):
            provenance |= {
                "texts": [chosen.texts, fingerprint(task.folder)],
                "columns": dict(task.columns),
                "teacher": [settings.data.teacher, _digest_of_teacher(task.teacher)],
                "suffix": task.suffix,
                "agreement": dataclasses.asdict(task.measure),
            }
    if chosen.caption_prompt != CAPTION:
        provenance["caption_prompt"] = chosen.caption_prompt
    if chosen.video_prompt != VIDEO:
        provenance["video_prompt"] = chosen.video_prompt
    if chosen.mmeb or chosen.composition:
        provenance["images"] = [chosen.images, image_files.of_folder(folder / chosen.images)]
    prepared = {known.name for known in suite.benchmarks}  # whole, and never changed
    own = [t.data for t in suite.tasks if isinstance(t, retrieval.Task) and t.name not in prepared]
    if own:
        provenance["eval_images"] = image_files.of_sets(own, chosen.limit)
    return provenance


def _digest_of_teacher(teacher: Embeddings) -> str:
    """Hash of which items a teacher has embedded, and of what is recorded of it."""
    record = json.dumps([teacher.dimension, teacher.provenance], sort_keys=True)
    content = teacher.ids.tobytes() + record.encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()
