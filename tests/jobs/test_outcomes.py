"""What a run says of what it learnt, and that it hands on nothing when that is nothing."""

import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from tests.jobs import tiny_run
from tests.tables import for_each
from unime_jax.export import self_check
from unime_jax.jobs import export, train
from unime_jax.training import outcome, tally
from unime_jax.training.setup import Setup


def test_a_run_leaves_what_it_counted_and_what_became_of_it(straight):
    lines = tiny_run.metrics(straight)
    sources = {key for line in lines for key in line if key.startswith(tally.BY_SOURCE)}
    assert len(sources) > 4
    for line in lines:
        assert line.keys() >= {*tally.COUNTS, "mean_cosine", "chance_loss"}
        assert "source_loss" not in line and "source_rows" not in line
        assert -0.1 < line["mean_cosine"] < 1
        own = [line[name] for name in sources if name in line]
        assert min(own) <= line["loss"] * (1 + 1e-5) and line["loss"] <= max(own) * (1 + 1e-5)
    found = outcome.read(straight)
    assert found["verdict"] == "too_short" and found["steps"] == 6  # six steps prove nothing
    for name, total in found["counts"].items():
        assert total == sum(line[name] for line in lines)

    # Scores are in tensorboard
    found = json.loads((straight / "evaluation.json").read_text())
    (file,) = (straight / "tensorboard" / "evaluation").iterdir()
    data, shown = file.read_bytes(), {}
    while data:  # records: length, its checksum, the event, its checksum
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            shown[event.step, value.tag] = value.simple_value
        data = data[16 + length :]
    assert shown[0, "evaluation/All"] == pytest.approx(found["before"]["All"])
    for name, percent in found["after"]["datasets"].items():
        assert shown[6, f"evaluation/datasets/{name}"] == pytest.approx(percent)

    # The report says what was measured and on how many rows
    page = (straight / "report.html").read_text()
    for words in ("Scores on mini_mmeb/eval", "95 % interval", "of 1 rows",
                  "finished", "UTC", "took", jax.__version__, "Loss by source", "too few to tell",
                  "hit@1, mean of 16 datasets, 16 rows"):  # fmt: skip
        assert words in page, words
    assert '<details class="dataset" open' not in page and 'href="#examples-1"' in page


def test_no_count_is_lost_between_lines_checkpoints_and_starts(
    config, straight, workdir, plain_step, one_device
):
    """Lines every four steps and where something is saved: sums are those of a line a step."""
    config.log_every, config.checkpoint.every, config.data.negatives = 4, 3, 1
    config.export.verify = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "write", lambda *_: None)
        train.run(config, workdir)
    few, every = tiny_run.metrics(workdir), tiny_run.metrics(straight)
    assert [line["step"] for line in few] == [3, 4, 6]
    for name in tally.COUNTS:
        assert sum(line[name] for line in few) == sum(line[name] for line in every)
    assert sum(line["duplicate_items"] for line in few) > 0


@pytest.fixture
def broken(monkeypatch):
    """Weights that are not finite."""
    initial = Setup.initial
    monkeypatch.setattr(
        Setup, "initial", lambda self: jax.tree.map(lambda x: x * np.nan, initial(self))
    )


@for_each("gives_up_after", [10, 4])
def test_a_run_whose_every_step_was_skipped_fails_and_hands_on_nothing(
    config, tmp_path, plain_step, one_device, broken, caplog, gives_up_after
):
    config, workdir = config.copy_and_resolve_references(), tmp_path / "run"
    config.max_skipped = gives_up_after
    for _ in range(2 if gives_up_after > 6 else 1):  # the same command again
        with pytest.raises(SystemExit) as ended, caplog.at_level(logging.ERROR):
            train.run(config, workdir)
        assert ended.value.code == outcome.STATUS
    assert outcome.STATUS not in (0, 1, 75, 143)
    steps = min(6, gives_up_after)
    assert f"every one of the {steps} steps was skipped" in caplog.text
    assert not (workdir / "hf").exists() and not (workdir / "evaluation.json").exists()
    assert outcome.read(workdir)["verdict"] == "learnt_nothing"
    assert "This run learnt nothing." in (workdir / "report.html").read_text()
    if gives_up_after > 6:  # there is a checkpoint
        with pytest.raises(ValueError, match="every one of the 6 steps.*nothing to export"):
            export.run(config, workdir)


def test_the_model_card_says_what_the_run_found(config, straight, workdir):
    shutil.copytree(straight, workdir)
    found = json.loads((workdir / outcome.FILE).read_text())
    found["findings"] = [{"name": "collapsed", "message": "the model has collapsed: ..."}]
    (workdir / outcome.FILE).write_text(json.dumps(found))
    config.job = "export"
    export.run(config, workdir)
    card = (workdir / "hf" / "README.md").read_text()
    assert "| **warning** | the model has collapsed" in card


def test_a_constant_model_does_not_pass_the_self_check(config, workdir, monkeypatch, tmp_path):
    """One vector for every token, of texts and images: it agrees with itself on every input."""
    initial = Setup.initial

    def constant(path, value):
        if path.endswith(("embed_tokens.embedding", "image_newline", "linear_2.bias")):
            return jnp.ones_like(value)
        return jnp.zeros_like(value) if path.endswith("linear_2.kernel") else value

    monkeypatch.setattr(
        Setup, "initial", lambda self: {p: constant(p, v) for p, v in initial(self).items()}
    )
    config.steps = 0
    with pytest.raises(
        RuntimeError, match="one embedding .*lowest cosine of two is 1.0000.*learnt"
    ):
        export.run(config, workdir)
    assert not (workdir / "hf" / "README.md").exists()

    # A record of one embedding does not pass either
    one = np.full((3, 4), 0.5)
    with pytest.raises(RuntimeError, match="all 3 inputs of the self-check one embedding"):
        self_check._check_different(one, 0.99999, tmp_path)
    self_check._check_different(one[:1], 0.99999, tmp_path)  # nothing to compare it with
