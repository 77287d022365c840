"""Whether a run learns, told from its metrics: right ones are left alone, wrong ones named."""

import dataclasses
import json
import logging
import math

import pytest

from experiments import stage2
from unime_jax.config import TrainConfig
from unime_jax.config_reader import read
from unime_jax.training import outcome

CHANCE = math.log(9)


@pytest.fixture(scope="module")
def settings() -> TrainConfig:
    """The default run: 15 steps of warm-up, 60 of InfoNCE, then the 8 hardest negatives."""
    return read(TrainConfig, stage2.get_config().to_dict())


@pytest.fixture
def finetune(settings):
    return dataclasses.replace(settings, infonce_steps=0)


def lines(losses, cosine=0.4, chance=CHANCE, skipped=0):
    return [
        {
            "step": step,
            "loss": loss,
            "chance_loss": chance,
            "mean_cosine": cosine,
            "skipped_steps": skipped,
        }
        for step, loss in enumerate(losses, 1)
    ]


def judged(settings, records):
    return outcome.Monitor(settings, records).outcome()


def names(found):
    return [finding.name for finding in found.findings]


def falling(steps, start=2.0, end=0.5):
    return [start + (end - start) * n / steps for n in range(steps)]


def test_what_a_run_has_learnt_also_of_skipped_steps(finetune):
    # A loss that falls is learning.
    found = judged(finetune, lines(falling(100)))
    assert found.verdict == "learnt" and not found.findings
    assert found.start.first_step == 1 and found.end.last_step == 100
    assert found.end.loss < found.start.loss

    # A collapse is named with what to change.
    found = judged(finetune, lines([1.0] * 20 + [CHANCE] * 80, cosine=0.9998))
    assert found.verdict == "learnt_nothing" and names(found) == ["collapsed"]
    message = found.findings[0].message
    for word in ("0.9998", "2.197", "learning_rate (now 0.0015)", "warmup_steps (now 15)",
                 "infonce_steps (now 0)", "hard_negatives (now 8)"):  # fmt: skip
        assert word in message

    # Alike embeddings that are still told apart are no collapse. As of a pretrained model that
    # was no embedder.
    assert not judged(finetune, lines(falling(100), cosine=0.995)).findings

    # A loss of chance is nothing learnt however spread.
    found = judged(finetune, lines([CHANCE * 1.3] * 100))
    assert names(found) == ["chance"] and found.verdict == "learnt_nothing"

    # A loss that is not below its start is doubtful.
    found = judged(finetune, lines(falling(100, 0.5, 0.9)))
    assert names(found) == ["no_progress"] and found.verdict == "doubtful"

    # A short trial is not judged.
    found = judged(finetune, lines([CHANCE] * 12, cosine=0.9999))
    assert found.verdict == "too_short" and not found.findings

    # A resumed run is judged from its start.
    every = lines(falling(40, 0.5, 0.6) + falling(60, 0.9, 0.8))
    resumed = outcome.Monitor(finetune, every[:40])
    for line in every[40:]:
        resumed.observe(line["step"], line)
    assert resumed.outcome() == judged(finetune, every)
    assert names(resumed.outcome()) == ["no_progress"]

    # Skipped steps are a share and all of them nothing
    # Skipped steps are a share and all of them nothing.
    some = judged(finetune, [*lines(falling(79)), lines([0.5] * 80, skipped=20)[-1]])
    assert names(some) == ["skipped_steps"] and "20 of 80 steps (25%)" in some.findings[0].message
    bad = [line | {"skipped_steps": line["step"]} for line in lines([None] * 6)]
    every = judged(finetune, bad)
    assert names(every) == ["all_skipped"] and every.verdict == "learnt_nothing"
    few = judged(finetune, [*lines(falling(79)), lines([0.5] * 80, skipped=2)[-1]])
    assert not few.findings

    # Skipped steps at the bound. More than a tenth; a single one of few steps is said of a run
    # that has ended.
    for steps, skipped, expected in (
        (80, 8, [[], []]),
        (80, 9, [["skipped_steps"], ["skipped_steps"]]),
        (8, 1, [["skipped_steps"], []]),
    ):
        records = [*lines(falling(steps - 1)), lines([0.5] * steps, skipped=skipped)[-1]]
        assert bounded(finetune, records) == expected, (steps, skipped)


def test_warnings_come_while_it_happens_and_ever_less_often(finetune, caplog):
    monitor = outcome.Monitor(finetune)
    with caplog.at_level(logging.WARNING):
        for line in lines([CHANCE] * 400, cosine=0.9998):
            monitor.observe(line["step"], line)
    said = [record.getMessage() for record in caplog.records if "collapsed" in record.getMessage()]
    assert [text.split(":")[0] for text in said] == ["step 50", "step 100", "step 200", "step 400"]


def test_the_file_says_it_to_machines_and_the_log_to_people(finetune, tmp_path, caplog):
    # The file says it to machines.
    records = [line | {"truncated_rows": 2} for line in lines([CHANCE] * 100, cosine=0.9998)]
    found = judged(finetune, records)
    with caplog.at_level(logging.ERROR):
        outcome.write(tmp_path, found)
        outcome.say(tmp_path)
    assert "after 100 steps: the model has collapsed" in caplog.text
    content = json.loads((tmp_path / "outcome.json").read_text())
    assert content["verdict"] == "learnt_nothing"
    assert content["counts"]["truncated_rows"] == 200
    assert outcome.read(tmp_path)["findings"][0]["name"] == "collapsed"
    (tmp_path / "outcome.json").write_text("[]")
    assert outcome.read(tmp_path) == {} == outcome.read(tmp_path / "absent")

    # The log has errors for what was in vain and warnings for the rest.
    caplog.clear()
    for records, level in (
        (lines([CHANCE] * 100, cosine=0.9998), logging.ERROR),
        (lines(falling(100, 0.5, 0.9)), logging.WARNING),
        (lines([1.0] * 5), logging.INFO),
    ):
        caplog.clear()
        outcome.write(tmp_path, judged(finetune, records))
        with caplog.at_level(logging.INFO):
            outcome.say(tmp_path)
        assert [record.levelno for record in caplog.records] == [level]
    monkey = tmp_path / "gone"
    outcome.write(monkey, judged(finetune, lines([1.0] * 5)))  # no such folder
    assert "cannot be written" in caplog.text


def bounded(settings, records):
    """Names of the findings of a run that has ended, and of one that is under way."""
    monitor = outcome.Monitor(settings, records)
    return [names(monitor.outcome(running=running)) for running in (False, True)]


def test_losses_at_the_bounds_and_over_windows(finetune, settings):
    # Losses at the bound of chance and of the start. Equal to chance is chance; equal to the
    # start is no progress, said from 100 steps on.
    assert bounded(finetune, lines([CHANCE] * 60)) == [["chance"]] * 2
    for steps, running in ((99, []), (100, ["no_progress"])):
        found = bounded(finetune, lines([1.0] * steps))
        assert found == [["no_progress"], running], steps
    warm = dataclasses.replace(
        finetune, optimizer=dataclasses.replace(finetune.optimizer, warmup_steps=60)
    )
    assert judged(warm, lines(falling(60))).verdict == "too_short"
    assert judged(warm, lines(falling(61))).verdict == "learnt"
    collapsed = lines([CHANCE * 0.95] * 60, cosine=outcome.COLLAPSED)
    assert bounded(finetune, collapsed) == [["collapsed"]] * 2
    low = lines([CHANCE * 0.5] * 60, cosine=outcome.COLLAPSED)
    assert judged(finetune, low).verdict == "doubtful"  # far below chance: no collapse

    # Windows are a quarter of the logged steps and twenty at most. Steps that are not finite are
    # in none; the windows are the first and the last of the rest.
    for steps, size in ((3, 1), (40, 10), (79, 19), (400, 20)):
        found = judged(finetune, lines(falling(steps)))
        ends = found.start.first_step, found.start.last_step
        assert ends == (1, size), steps
        assert (found.end.first_step, found.end.last_step) == (steps - size + 1, steps), steps
    losses = [1.0, None, 3.0, *[2.0] * 38]
    found = judged(finetune, lines(losses))
    assert found.start.loss == (1.0 + 3.0 + 8 * 2.0) / 10 and found.start.last_step == 11
    assert judged(finetune, lines([1.0] * 60, skipped=3)).skipped_steps == 3

    # Losses of two objectives are not compared. InfoNCE ends at 0.4; the hardest negatives begin
    # at 1.5, which is no loss of progress.
    found = judged(settings, lines([*falling(60, 4.0, 0.4), *falling(100, 1.5, 0.7)]))
    assert found.verdict == "learnt" and found.start.first_step == 61
    back = judged(settings, lines([*falling(60, 4.0, 2.5), *falling(100, 0.7, 1.5)]))
    assert names(back) == ["no_progress"]  # though below where InfoNCE began


def test_advice_is_about_the_loss_that_is_used(finetune):
    chance = lines([CHANCE * 1.3] * 100)
    for changes, word in (
        ({"hard_negatives": 8, "hardness": 0.0}, "loss.hard_negatives (now 8)"),
        ({"hard_negatives": None, "hardness": 9.0}, "loss.hardness (now 9)"),
        ({"hard_negatives": None, "hardness": 0.0}, ""),
    ):
        changed = dataclasses.replace(finetune, loss=dataclasses.replace(finetune.loss, **changes))
        message = judged(changed, chance).findings[0].message
        assert word in message, changes
        assert ("hard_negatives" in message) == bool(changes["hard_negatives"]), changes
        assert ("hardness" in message) == bool(changes["hardness"]), changes
