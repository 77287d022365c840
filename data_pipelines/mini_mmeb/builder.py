"""The TFDS builder `mini_mmeb`: writes MiniMMEB's rows as ArrayRecord in four configs.

Encoded images are stored in byte-string features, which unlike `features.Image` may be empty and
are handed back as they are: reading needs neither this code nor TensorFlow.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from data_pipelines.mini_mmeb import content
from data_pipelines.mini_mmeb.render import Picture, encode

Row = dict[str, Any]

Bytes = tfds.features.Text  # a byte string; TFDS does not ask for UTF-8


def strings() -> tfds.features.Sequence:
    return tfds.features.Sequence(tfds.features.Text())


FEATURES = {
    "train": {
        **dict.fromkeys(("id", "source", "qry", "qry_image_path"), tfds.features.Text()),
        "qry_image": Bytes(),
        **dict.fromkeys(("pos_text", "pos_image_path"), tfds.features.Text()),
        "pos_image": Bytes(),
        "neg_text": strings(),
        "neg_image_path": strings(),
        "neg_image": tfds.features.Sequence(Bytes()),
    },
    "eval": {
        **dict.fromkeys(("id", "qry_text", "qry_img_path"), tfds.features.Text()),
        "tgt_text": strings(),
        "tgt_img_path": strings(),
    },
    "composition": dict.fromkeys(
        ("id", "image_path", "caption", "negative_caption"), tfds.features.Text()
    ),
    "images": {"path": tfds.features.Text(), "image": Bytes()},
}
DESCRIPTIONS = {
    "train": "Training pairs, one split a source.",
    "eval": "Queries with their own candidates, the right one first; one split a dataset.",
    "composition": "Images with a true and a false caption, in the manner of SugarCrepe.",
    "images": "The images that eval and composition name.",
}


class MiniMmeb(tfds.core.GeneratorBasedBuilder):
    """MMEB in miniature: handwritten digits and rendered scenes, four meta-tasks."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=name, description=text) for name, text in DESCRIPTIONS.items()
    ]

    def __init__(self, *, parameters: dict[str, Any], **kwargs: Any):
        """`parameters`: seed, train_rows, eval_rows; kept in the metadata of what is built."""
        self.parameters = parameters
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="MMEB in miniature. " + DESCRIPTIONS[self.builder_config.name],
            features=tfds.features.FeaturesDict(FEATURES[self.builder_config.name]),
            metadata=tfds.core.MetadataDict(self._metadata()),
            disable_shuffling=True,  # row numbers are what the metadata speaks of
        )

    def _metadata(self) -> dict[str, Any]:
        facts = {
            "datasets": {
                dataset.name: {"meta": dataset.meta, "split": dataset.split}
                for dataset in content.DATASETS
            }
        }
        if self.builder_config.name == "train":
            facts["false_negatives"] = {
                source.name: false_negatives(content.train_rows(source, **self._train()))
                for source in content.SOURCES
            }
        return {"parameters": self.parameters, **facts}

    def _train(self) -> dict[str, int]:
        return {"seed": self.parameters["seed"], "count": self.parameters["train_rows"]}

    def _test(self) -> dict[str, int]:
        return {"seed": self.parameters["seed"], "count": self.parameters["eval_rows"]}

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        match self.builder_config.name:
            case "train":
                return {source.name: self._train_rows(source) for source in content.SOURCES}
            case "eval":
                return {dataset.name: self._eval_rows(dataset) for dataset in content.DATASETS}
            case "composition":
                return {subset: self._composition_rows(subset) for subset in content.COMPOSITION}
            case "images":
                return {"images": self._images()}

    def _generate_examples(self):
        """Not called: every split has a generator of its own."""

    def _train_rows(self, source: content.Dataset) -> Iterator[tuple[int, Row]]:
        for number, row in enumerate(content.train_rows(source, **self._train())):
            yield (
                number,
                {
                    "id": row.id,
                    "source": source.name,
                    "qry": row.query.text,
                    "qry_image_path": row.query.path,
                    "qry_image": encoded(row.query.picture),
                    "pos_text": row.positive.text,
                    "pos_image_path": row.positive.path,
                    "pos_image": encoded(row.positive.picture),
                    "neg_text": [side.text for side in row.negatives],
                    "neg_image_path": [side.path for side in row.negatives],
                    "neg_image": [encoded(side.picture) for side in row.negatives],
                },
            )

    def _eval_rows(self, dataset: content.Dataset) -> Iterator[tuple[int, Row]]:
        for number, row in enumerate(content.eval_rows(dataset, **self._test())):
            yield (
                number,
                {
                    "id": row.id,
                    "qry_text": row.query.text,
                    "qry_img_path": row.query.path,
                    "tgt_text": [side.text for side in row.candidates],
                    "tgt_img_path": [side.path for side in row.candidates],
                },
            )

    def _composition_rows(self, subset: str) -> Iterator[tuple[int, Row]]:
        for number, row in enumerate(content.composition_rows(subset, **self._test())):
            yield (
                number,
                {
                    "id": row.id,
                    "image_path": row.path,
                    "caption": row.caption.text(),
                    "negative_caption": row.negative.text(),
                },
            )

    def _images(self) -> Iterator[tuple[int, Row]]:
        for number, (path, picture) in enumerate(content.pictures(**self._test())):
            yield number, {"path": path, "image": encode(picture)}


def encoded(picture: Picture | None) -> bytes:
    return b"" if picture is None else encode(picture)


def false_negatives(rows: Sequence[content.TrainRow]) -> dict[str, Any]:
    """How many rows mean what another row of their source means, and which ones."""
    groups = content.false_negatives(rows)
    keys = [{rows[number].positive.key for number in group} for group in groups]
    return {
        "rows": sum(map(len, groups)),
        "rows_with_distinct_targets": sum(
            len(group) for group, distinct in zip(groups, keys, strict=True) if len(distinct) > 1
        ),
        "groups": groups,
    }
