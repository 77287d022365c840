"""Everything that a model is evaluated on, by place; a dataset is read when it is scored."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import tensorflow_datasets as tfds

from unime_jax import files
from unime_jax.config import AgreementConfig, Distillation, TrainConfig
from unime_jax.data.embedding_store import Embeddings
from unime_jax.data.formats import open_dataset
from unime_jax.data.formats.tfds import version_folder
from unime_jax.evaluation import retrieval_scores, scores, tasks
from unime_jax.evaluation.item_table import Encode, Images
from unime_jax.evaluation.ranking import DatasetResult
from unime_jax.evaluation.retrieval_data import PLACE, images_of
from unime_jax.evaluation.retrieval_files import open_sets
from unime_jax.evaluation.shared_encoder import SharedEncoder
from unime_jax.evaluation.stored_images import open_images
from unime_jax.evaluation.tasks import composition, distillation, mmeb, retrieval
from unime_jax.evaluation.tasks.retrieval import RetrievalResult

Key = tuple[tasks.Kind, str]  # kind and name of a task


@dataclasses.dataclass(frozen=True)
class Suite:
    """Tasks, the meta task and split of each of MMEB's datasets, and where their images are.

    No rows, images or vectors are held.
    """

    tasks: tuple[tasks.Task, ...]
    table: scores.Table
    image_folder: files.Path

    @property
    def is_empty(self) -> bool:
        return not self.tasks

    def images(self) -> Images:
        """Encoded bytes by path; an index of them is made anew by every call.

        Those of retrieval sets lie in the rows of the sets.
        """
        own = {t.name: t.data for t in self.tasks if isinstance(t, retrieval.Task)}
        in_rows, stored = images_of(own), open_images(self.image_folder)
        return lambda path: in_rows(path) if path.startswith(PLACE) else stored(path)

    @property
    def composition_rows(self) -> dict[str, int]:
        """Rows of each subset of composition."""
        return {t.name: len(t) for t in self.tasks if isinstance(t, composition.Task)}


def open_suite(settings: TrainConfig, folder: files.Path, teacher: Embeddings | None) -> Suite:
    """The tasks of a training run's `evaluation`; `folder` is its `data.folder`."""
    config, loss = settings.evaluation, settings.loss
    agreement = None
    if config.texts and teacher and isinstance(loss, Distillation):
        measure = AgreementConfig(
            loss.temperature, loss.teacher_temperature, loss.direction, loss.mask_diagonal
        )
        suffix, columns = settings.data.suffix, settings.data.columns
        agreement = distillation.Task(folder / config.texts, teacher, suffix, measure, columns)
    return make_suite(
        folder,
        mmeb_folder=config.mmeb,
        composition_folder=config.composition,
        images=config.images,
        image_prompt=config.image_prompt,
        limit=config.limit,
        agreement=agreement,
        retrieval_data=settings.data.eval,
        columns=settings.data.columns,
    )


def make_suite(
    folder: files.Path,
    *,
    mmeb_folder: str,
    composition_folder: str,
    images: str,
    image_prompt: str,
    limit: int,
    agreement: distillation.Task | None,
    retrieval_data: str,
    columns: Mapping[str, str],
) -> Suite:
    """Opens folders below `folder` ("": none), of which no row is read.

    `retrieval_data` may be a file, too, see `retrieval_files.open_sets`, which is given `columns`.
    The table is the dataset's own metadata, or MMEB's. Images come from a TFDS folder with the
    columns path and image, or from plain files, whose paths must stay below it.

    Raises:
      FileNotFoundError: a folder without a dataset.
      ValueError: a dataset whose meta task is not known.
    """
    datasets = open_dataset(folder / mmeb_folder) if mmeb_folder else {}
    datasets = {name.removesuffix("/test"): rows for name, rows in datasets.items()}  # of the hub
    table = _table(folder / mmeb_folder) if mmeb_folder else {}
    if unknown := sorted(set(datasets) - set(table)):
        raise ValueError(
            f"{folder / mmeb_folder}: no meta task is known for {', '.join(unknown)}. Name MMEB's "
            'datasets as the hub does, or give the dataset metadata {"datasets": {name: {"meta", '
            '"split"}}}.'
        )
    subsets = open_dataset(folder / composition_folder) if composition_folder else {}
    suite: list[tasks.Task] = [mmeb.Task(name, rows, limit) for name, rows in datasets.items()]
    suite += [
        composition.Task(name, rows, image_prompt, limit=limit) for name, rows in subsets.items()
    ]
    suite += [agreement] if agreement else []
    sets = open_sets(folder / retrieval_data, columns) if retrieval_data else []
    suite += [retrieval.Task(data, limit) for data in sets]
    return Suite(tuple(suite), {name: table[name] for name in datasets}, folder / images)


def evaluate(suite: Suite, encode: Encode) -> tuple[scores.Scores, dict[Key, Any]]:
    """Scores in percent, and the result of each task."""
    run = tasks.run_all(suite.tasks, suite.images(), SharedEncoder(encode))
    results = {(task.kind, task.name): result for task, result in run}
    return summary(suite, results), results


def rankings(results: Mapping[Key, Any]) -> dict[str, DatasetResult]:
    """The results of MMEB's datasets by name."""
    return {name: result for (kind, name), result in results.items() if kind == "mmeb"}


def retrievals(results: Mapping[Key, Any]) -> dict[str, RetrievalResult]:
    """The results of retrieval sets by name."""
    return {name: result for (kind, name), result in results.items() if kind == "retrieval"}


def summary(suite: Suite, results: Mapping[Key, Any]) -> scores.Scores:
    """Scores of all tasks, with MMEB's averages."""
    hits = {name: result.hit_at_1 for name, result in rankings(results).items()}
    subsets = {n: r.accuracy for (kind, n), r in results.items() if kind == "composition"}
    found = scores.summary(hits, suite.table, subsets)
    for (kind, _), result in results.items():
        if kind == "distillation":
            found["distillation"] = result
    if sets := retrievals(results):
        found["retrieval"] = retrieval_scores.of_sets(sets)
    return found


def _table(folder: files.Path) -> scores.Table:
    try:
        version = version_folder(folder)
    except FileNotFoundError:  # of another format, which has no metadata
        return scores.MMEB_V1
    metadata = tfds.builder_from_directory(version).info.metadata or {}
    named = metadata.get("datasets", {})
    return {n: (v["meta"], v["split"]) for n, v in named.items()} or scores.MMEB_V1
