"""Everything a run is evaluated on: opened once, scored before and after training."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from unime_jax.config import TrainConfig
from unime_jax.data.embedding_store import Embeddings
from unime_jax.data.formats import open_dataset
from unime_jax.data.formats.tfds import version_folder
from unime_jax.data.images import read_below
from unime_jax.encode import Encoder
from unime_jax.evaluation import composition, mmeb, neighbours, scores
from unime_jax.training.objectives import Distillation


@dataclasses.dataclass(frozen=True)
class Suite:
    """Evaluation rows by dataset and subset, their place in the averages, and their images."""

    datasets: Mapping[str, Sequence[Mapping[str, Any]]]
    table: scores.Table
    composition: Mapping[str, Sequence[Mapping[str, Any]]]
    images: mmeb.Images
    image_prompt: str
    texts: neighbours.Texts | None

    @property
    def is_empty(self) -> bool:
        return not (self.datasets or self.composition or self.texts)


def open_suite(settings: TrainConfig, folder: pathlib.Path, teacher: Embeddings | None) -> Suite:
    """Opens the folders of `settings.evaluation`, relative to `folder`.

    The table is the dataset's own metadata, or MMEB's. Images come from a TFDS folder with the
    columns path and image, or from plain files, whose paths must stay below it.

    Raises:
      FileNotFoundError: a folder without a dataset.
      ValueError: a dataset whose meta task is not known.
    """
    config = settings.evaluation
    texts = None
    if config.texts and teacher and isinstance(settings.loss, Distillation):
        texts = neighbours.open_texts(
            folder / config.texts, teacher, settings.data.suffix, settings.loss
        )
    datasets = _rows(folder / config.mmeb, config.limit) if config.mmeb else {}
    table = _table(folder / config.mmeb) if config.mmeb else {}
    unknown = sorted(set(datasets) - set(table))
    if unknown:
        raise ValueError(
            f"{folder / config.mmeb}: no meta task is known for {', '.join(unknown)}. Name MMEB's "
            'datasets as the hub does, or give the dataset metadata {"datasets": {name: {"meta", '
            '"split"}}}.'
        )
    return Suite(
        datasets=datasets,
        table={name: table[name] for name in datasets},
        composition=_rows(folder / config.composition, config.limit) if config.composition else {},
        images=_images(folder / config.images),
        image_prompt=config.image_prompt,
        texts=texts,
    )


def evaluate(suite: Suite, encoder: Encoder) -> tuple[scores.Scores, dict[str, mmeb.DatasetResult]]:
    """Scores in percent, and what the report shows of each dataset."""
    results = mmeb.evaluate(suite.datasets, encoder, suite.images)
    subsets: dict[str, float] = {}
    if suite.composition:
        found = composition.evaluate(
            suite.composition,
            encoder,
            suite.images,
            image_text=suite.image_prompt,
            caption_text="{caption}",
        )
        subsets = {name: result.accuracy for name, result in found.items()}
    hits = {name: result.hit_at_1 for name, result in results.items()}
    summary = scores.summary(hits, suite.table, subsets)
    if suite.texts:
        summary["distillation"] = neighbours.evaluate(suite.texts, encoder)
    return summary, results


def _rows(folder: pathlib.Path, limit: int) -> dict[str, list[Mapping[str, Any]]]:
    return {
        name: [source[i] for i in range(min(limit or len(source), len(source)))]
        for name, source in open_dataset(folder).items()
    }


def _table(folder: pathlib.Path) -> scores.Table:
    metadata = tfds.builder_from_directory(version_folder(folder)).info.metadata or {}
    named = metadata.get("datasets", {})
    return {n: (v["meta"], v["split"]) for n, v in named.items()} or scores.MMEB_V1


def _images(folder: pathlib.Path) -> mmeb.Images:
    if not any(folder.glob("dataset_info.json")) and not any(folder.glob("*/dataset_info.json")):
        return lambda path: read_below(folder, path)
    stored: dict[str, bytes] = {}
    for name, source in _rows(folder, limit=0).items():
        for row in source:
            path, data = mmeb.text_of(row["path"]), row["image"]
            if stored.setdefault(path, data) != data:
                raise ValueError(
                    f"{folder}, split {name!r}: another split has a different image at the path"
                    f" {path!r}; name them apart, as evaluation finds images by path"
                )
    return stored.__getitem__
