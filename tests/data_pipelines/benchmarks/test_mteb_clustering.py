"""mteb's image clustering sets from parquet files to the V-measure."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.benchmarks import mteb_clustering
from data_pipelines.benchmarks.check import check
from data_pipelines.benchmarks.mteb_clustering import read
from data_pipelines.benchmarks.prepare import prepare
from tests.data_pipelines.benchmarks.folder_hub import FolderHub, public
from tests.data_pipelines.benchmarks.test_mteb_retrieval import (
    PICTURES,
    images_of,
    parquet,
    picture,
)
from unime_jax.evaluation import tasks
from unime_jax.evaluation.benchmarks.prepared_set import TaskSettings, open_set
from unime_jax.evaluation.benchmarks.prepared_set import images_of as stored
from unime_jax.evaluation.tasks import clustering


def test_images_with_labels_are_clustered_and_bad_files_are_named(tmp_path):
    files = [picture(grey, "PNG") for grey in (0, 5, 200, 210, 0)]
    content = {
        "plain_text/test-00000-of-00002.parquet": parquet(
            {"img": images_of(files[:2]), "fine_label": [7, 7], "coarse_label": [0, 1]}
        ),
        "plain_text/test-00001-of-00002.parquet": parquet(
            {"img": images_of(files[2:]), "fine_label": [3, 3, 7], "coarse_label": [0, 1, 0]}
        ),
        "plain_text/train-00000-of-00001.parquet": parquet({"img": images_of(files[:1])}),
    }
    made = public(
        name="few",
        kind="clustering",
        files=("*test-*.parquet",),
        counts={"few": 5},
        read=lambda raw, folder: read(raw, folder, "few", "test", "img", "fine_label"),
    )
    prepare(made, tmp_path, None, FolderHub(content))
    check(made, tmp_path / "few")
    rows = [json.loads(line) for line in (tmp_path / "few/rows/few.jsonl").open()]
    assert [row["label"] for row in rows] == [7, 7, 3, 3, 7]
    assert [(tmp_path / "few/images" / row["image"]).read_bytes() for row in rows] == files
    assert rows[0] == rows[4] and len(list((tmp_path / "few/images").iterdir())) == 4

    prepared = open_set(tmp_path / "few")
    task = clustering.task_of(prepared, "few", TaskSettings("<|image_1|>", "{caption}", "", 0))

    def encode(items):
        greys = [np.asarray(Image.open(io.BytesIO(i.media[0].data))).mean() for i in items]
        return np.array([[np.cos(g / 255), np.sin(g / 255)] for g in greys], np.float32)

    result = tasks.run(task, stored([prepared]), encode)
    assert (result.v_measure, result.rows, result.labels) == (pytest.approx(100), 5, 2)

    image = {"image": images_of(PICTURES[:1])}
    cases = [
        ({}, "has no test-00000-of"),
        ({"a/test.parquet": image | {"other": [1]}}, "row 0: no label; its columns are image"),
        ({"a/test.parquet": {"image": [None], "label": [1]}}, "row 0: no image"),
        ({"a/test.parquet": {"image": [b"no image"], "label": [1]}}, "row 0: "),
        ({f"{f}/test.parquet": image | {"label": [1]} for f in "ab"}, "test in .* and .*leave one"),
    ]
    for number, (parts, why) in enumerate(cases):
        raw = tmp_path / str(number)
        raw.mkdir()
        for name, columns in parts.items():
            (raw / name).parent.mkdir(parents=True)
            (raw / name).write_bytes(parquet(columns))
        with pytest.raises((ValueError, FileNotFoundError), match=why):
            read(raw, tmp_path / "bad", "few", "test", "image", "label")
    assert len(mteb_clustering.SETS) == 5
