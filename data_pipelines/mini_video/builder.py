"""The TFDS builder `mini_video`: MiniVideo's queries with their candidates, in MMEB's columns."""

from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from data_pipelines.mini_mmeb.builder import strings
from data_pipelines.mini_video import content
from data_pipelines.mini_video.content import Dataset, path_of

FEATURES = {
    **dict.fromkeys(("id", "qry_text", "qry_img_path", "qry_video_path"), tfds.features.Text()),
    **{name: strings() for name in ("tgt_text", "tgt_img_path", "tgt_video_path")},
}


class MiniVideo(tfds.core.GeneratorBasedBuilder):
    """Clips of moving and changing shapes: what they show, and in which order."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(
            name="eval",
            description="Queries with their own candidates, the right one first; a split a set.",
        )
    ]

    def __init__(self, *, parameters: dict[str, Any], **kwargs: Any):
        """`parameters`: seed, eval_rows; kept in the metadata of what is built."""
        self.parameters = parameters
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        datasets = {d.name: {"meta": d.meta, "split": "IND"} for d in content.DATASETS}
        metadata = {"parameters": self.parameters, "datasets": datasets}
        return tfds.core.DatasetInfo(
            builder=self,
            description="MiniVideo. " + self.builder_config.description,
            features=tfds.features.FeaturesDict(FEATURES),
            metadata=tfds.core.MetadataDict(metadata),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        return {dataset.name: self._rows(dataset) for dataset in content.DATASETS}

    def _generate_examples(self):
        """Not called: every split has a generator of its own."""

    def _rows(self, dataset: Dataset) -> Iterator[tuple[int, dict[str, Any]]]:
        seed, count = self.parameters["seed"], self.parameters["eval_rows"]
        for number, row in enumerate(content.rows(dataset, "eval", seed, count)):
            yield (
                number,
                {
                    "id": f"{dataset.name}-{number:06d}",
                    "qry_text": row.query.text,
                    "qry_img_path": "",
                    "qry_video_path": path_of(row.query),
                    "tgt_text": [side.text for side in row.candidates],
                    "tgt_img_path": [""] * len(row.candidates),
                    "tgt_video_path": [path_of(side) for side in row.candidates],
                },
            )
