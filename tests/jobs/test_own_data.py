"""A training run on JSON lines and pictures in files, which are the rows of a TFDS folder."""

import json

import pytest

from tests.jobs.tiny_run import metrics
from unime_jax.data import formats, quarantine
from unime_jax.data.schema import to_example
from unime_jax.jobs import export, train


@pytest.fixture
def own(data, config, tmp_path):
    """The rows as JSON lines, in columns of their own."""
    folder = tmp_path / "own"
    (folder / "images").mkdir(parents=True)
    for name, source in formats.open_dataset(f"{data}/{config.data.train}").items():
        lines = []
        for index in range(len(source)):
            example = to_example(name, source[index], str(index))
            sides = [_written(item, folder) for item in (example.query, example.positive)]
            negatives = [_written(item, folder) for item in example.negatives]
            ask, answer = sides
            lines.append({"ask": ask, "answer": answer, "negatives": negatives, "id": example.id})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def _written(item, folder):
    names = []
    for image in item.media:
        name = f"images/{image.identity.removeprefix('blake2b:')}.png"
        (folder / name).write_bytes(image.data)
        names.append(name)
    return {"text": item.text, "images": names}


def test_a_run_on_json_lines_reads_what_a_run_on_tfds_reads(
    config, workdir, own, tmp_path, plain_step, one_device
):
    config.steps = 2
    config.data.max_bad_share = 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "write", lambda *_: None)
        train.run(config, tmp_path / "tfds")
    config.data.train = str(own)
    with pytest.raises(
        ValueError, match=r"config.data.train: source '\w+': no column is the query"
    ):
        train.run(config, workdir)
    config.data.columns = {"query": "ask"}
    train.run(config, workdir)
    for got, want in zip(metrics(workdir), metrics(tmp_path / "tfds"), strict=True):
        same = [key for key in want if key.startswith(("pad", "dup", "dropped", "rows", "overfl"))]
        assert len(same) > 3 and [got[key] for key in same] == [want[key] for key in same]
    assert not quarantine.read_quarantine(workdir / "quarantine.jsonl")
    assert (workdir / "hf" / "self_check.json").exists()
    config.data.columns = {"query": "ask", "positive": "answer"}
    with pytest.raises(ValueError, match='config.data.columns.positive: - -> "answer"'):
        train.run(config, workdir)
