"""Rows that cannot be used: left out and listed, or too many."""

import functools
import json

import pytest

from tests.backbones.images import encoded, noise
from tests.jobs.tiny_run import metrics
from unime_jax import files
from unime_jax.data import formats, quarantine
from unime_jax.export import self_check
from unime_jax.jobs import train

ROWS = 24  # of a source


@pytest.fixture
def spoil(monkeypatch):
    """Changes rows of every source, so that the same program trains as without."""

    def change(changes: dict[int, dict]):
        def open_spoilt(folder):
            return {
                name: [dict(rows[i]) | changes.get(i, {}) for i in range(len(rows))]
                for name, rows in open_dataset(folder).items()
            }

        open_dataset = formats.open_dataset
        monkeypatch.setattr(formats, "open_dataset", open_spoilt)

    return change


NO_IMAGE = {"qry_image_path": b"", "qry_image": b""}
BAD_ROWS = {
    3: {"id": b"corrupt", "qry_image_path": b"a.png", "qry_image": b"\x89PNG\r\n\x1a\n0000"},
    5: {"id": b"absent", "qry_image_path": b"b.png", "qry_image": b""},
    8: {"id": b"empty", "qry": b"<|image_1|>\n", **NO_IMAGE},
    9: {"id": b"targetless", "pos_text": b"", "pos_image_path": b"", "pos_image": b""},
}
TWO = {"qry": b"<|image_1|> or <|image_2|>?", "qry_image_path": [b"c.png", b"d.png"]}
SEVERAL_IMAGES = {
    0: {"id": b"two", "qry_image": [encoded(noise(20, 30)), encoded(noise(50, 20))], **TWO},
    2: {"id": b"half", "qry_image": [encoded(noise(20, 30)), encoded(noise(90, 90))[:900]], **TWO},
}


@pytest.mark.slow
def test_bad_rows_are_quarantined_and_the_run_ends_well(config, workdir, plain_step, spoil):
    spoil(BAD_ROWS | SEVERAL_IMAGES)
    config.data.max_bad_share = 0.5
    train.run(config, workdir)
    listed = quarantine.read_quarantine(workdir / "quarantine.jsonl")
    sources = formats.open_dataset(f"{config.data.folder}/{config.data.train}").keys()
    assert len({item.source for item in listed}) > 1 and {x.source for x in listed} <= sources
    found = {item.id: item for item in listed}
    assert found.keys() == {"corrupt", "absent", "empty", "targetless", "half"}
    assert [found[id].path for id in ("corrupt", "absent", "empty")] == ["a.png", "b.png", ""]
    assert found["half"].path == "d.png"
    assert found["half"].reason.startswith("query: image 2 of 2 cannot be decoded: OSError")
    assert "cannot be decoded" in found["corrupt"].reason
    assert "missing" in found["absent"].reason
    assert "empty text and no image" in found["empty"].reason
    assert "no positive" in found["targetless"].reason
    assert sum(line["replaced_examples"] for line in metrics(workdir)) >= 4
    check = json.loads((workdir / "hf" / "self_check.json").read_text())
    several = [entry for entry in check["inputs"] if "images" in entry]
    assert several and all(len(entry["images"]) == 2 for entry in several)
    assert several[0]["text"].count("<image>") == 2
    self_check.repeat(files.as_path(workdir / "hf"))


def test_too_many_bad_rows_end_the_run(config, workdir, plain_step, one_device, spoil, monkeypatch):
    spoil(BAD_ROWS)
    early = functools.partial(quarantine.Quarantine, min_read=32)
    monkeypatch.setattr(quarantine, "Quarantine", early)
    config.data.max_bad_share = 0.1
    with pytest.raises(ValueError, match="examples read were unusable.*quarantine.jsonl"):
        train.run(config, workdir)
    assert (workdir / "quarantine.jsonl").exists() and not (workdir / "hf").exists()


def test_a_source_without_a_usable_row_is_named(config, workdir, spoil):
    spoil(dict.fromkeys(range(ROWS), BAD_ROWS[5]))
    with pytest.raises(ValueError, match="has no usable example.*All are listed in") as raised:
        train.run(config, workdir)
    (found,) = quarantine.read_quarantine(workdir / "quarantine.jsonl")  # all have one name
    assert f"source '{found.source}' has no usable" in str(raised.value)
    assert found[1:3] == ("absent", "b.png")
