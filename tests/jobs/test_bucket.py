"""Runs whose work directory lies in a bucket: the same commands, and nothing on the local disk."""

import json
import pathlib

import numpy as np
import pytest

from experiments import embed as embed_recipe
from tests.jobs import tiny_run
from unime_jax import files
from unime_jax.data.embedding_store import open_embeddings
from unime_jax.jobs import embed, export, train

RUN = "gs://bucket/run"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_run.build_data(folder)
    return folder


@pytest.mark.slow
def test_a_run_in_a_bucket_trains_resumes_exports_and_embeds(data, bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny_run.make_config(data)
    config.steps = 2
    config.optimizer.schedule = "constant"
    train.run(config, files.as_path(RUN))
    names = bucket.names("bucket/run/")
    for name in (
        "config.json",
        "metrics.jsonl",
        "hf/config.json",
        "hf/self_check.json",
        "hf/README.md",
    ):
        assert f"run/{name}" in names
    assert any(name.startswith("run/tensorboard/events") for name in names)
    assert any(name.startswith("run/checkpoints/2/") for name in names)
    assert not [name for name in names if name.endswith((".lock", ".tmp", ".now"))]

    files.upload(data, files.as_path("gs://bucket/data"))
    elsewhere = tiny_run.with_evaluation(tiny_run.make_config("gs://bucket/data"))
    elsewhere.steps = 4
    elsewhere.optimizer.schedule = "constant"
    train.run(elsewhere, files.as_path(RUN))
    assert {"run/report.html", "run/results_after.npz"} <= set(bucket.names())
    lines = [
        json.loads(line) for line in bucket.objects["bucket/run/metrics.jsonl"].content.splitlines()
    ]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    goodput = json.loads(bucket.objects["bucket/run/goodput.json"].content)
    assert goodput["starts"] == 2

    local = tmp_path / "local"
    config.steps = 4
    train.run(config, local)  # the same run, not interrupted
    assert tiny_run.metrics(local)[-1]["loss"] == lines[-1]["loss"]
    same = (local / "hf" / "model.safetensors").read_bytes()
    assert bucket.objects["bucket/run/hf/model.safetensors"].content == same

    bucket.objects.pop("bucket/run/hf/config.json")
    export.run(config, files.as_path(RUN))
    assert "run/hf/config.json" in bucket.names()

    (data / "texts.txt").write_text("a cat\na dog\na red square\n")
    corpus = embed_recipe.get_config()
    corpus.backbone = f"{RUN}/hf"
    corpus.data.folder = str(data)
    corpus.data.datasets, corpus.data.texts = (), ("texts.txt",)
    corpus.batch_size = 8
    embed.run(corpus, files.as_path("gs://bucket/vectors"))
    vectors = open_embeddings("gs://bucket/vectors").vectors_of(["a cat", "a dog"])
    assert vectors.shape[0] == 2 and np.isfinite(vectors).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["local"]
    assert not list(pathlib.Path(".").glob("gs*"))
