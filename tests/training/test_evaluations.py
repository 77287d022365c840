"""Evaluations during training: when they are due, and which step is the best."""

import dataclasses
import errno
import json

import jax
import pytest

from experiments import stage2
from unime_jax.config import TrainConfig
from unime_jax.config_reader import read
from unime_jax.training import evaluations
from unime_jax.training.evaluations import Evaluations


def settings_of(every, steps=10):
    settings = read(TrainConfig, stage2.get_config().to_dict())
    evaluation = dataclasses.replace(settings.evaluation, every=every)
    return dataclasses.replace(settings, evaluation=evaluation, steps=steps)


def scores(percent):
    return {"datasets": {"a": percent}, "All": percent, "composition": {}}


def test_due_at_multiples_that_have_no_scores_yet(tmp_path):
    # Due at multiples that have no scores yet.
    scored = Evaluations(tmp_path, settings_of(every=3, steps=9))
    assert [step for step in range(12) if scored.is_due(step)] == [3, 6]
    scored.add(3, scores(1.0))
    assert [step for step in range(12) if scored.is_due(step)] == [6]
    assert not any(Evaluations(tmp_path, settings_of(every=0)).is_due(step) for step in range(12))

    # Another start knows the scores up to where it goes on.
    (tmp_path := tmp_path / "next").mkdir()
    scored = Evaluations(tmp_path, settings_of(every=2))
    for step in (2, 4, 6):
        scored.add(step, scores(float(step)))
    scored.add(6, scores(0.0))  # it has scores
    assert scored.scores[6] == scores(6.0)
    assert len((tmp_path / evaluations.FILE).read_text().splitlines()) == 3
    again = Evaluations(tmp_path, settings_of(every=2))
    again.resume(4)
    assert again.scores == {2: scores(2.0), 4: scores(4.0)} and again.is_due(6)
    assert evaluations.read(tmp_path) == again.scores


def test_what_is_damaged_is_passed_over_or_set_aside(tmp_path):
    # Damaged lines are passed over.
    damages = [b"[]", b"null", b'{"step": 3}', b'{"step": 4, "scores": 7}', b"\xff\xfe", b'{"ste']
    damages.append(b'{"step": 6, "scores": {"All": NaN}}')
    for damage in damages:
        good = json.dumps({"step": 2, "scores": scores(5.0)}).encode() + b"\n"
        (tmp_path / evaluations.FILE).write_bytes(good + damage)
        scored = Evaluations(tmp_path, settings_of(every=2))
        scored.resume(8)
        assert scored.scores.keys() == {2}, damage
        scored.add(8, scores(1.0))
        assert evaluations.read(tmp_path).keys() == {2, 8}, damage

    # A folder in place of the file is set aside.
    (tmp_path := tmp_path / "next").mkdir()
    (tmp_path / evaluations.FILE).mkdir()
    scored = Evaluations(tmp_path, settings_of(every=2))
    scored.resume(0)
    scored.add(2, scores(1.0))
    assert evaluations.read(tmp_path).keys() == {2}

    # The best is the highest overall then the latest
    # The best is the highest then the latest of those that are there.
    by_step = {2: scores(50.0), 4: scores(60.0), 6: scores(60.0), 8: scores(10.0)}
    assert evaluations.best_step(by_step, [2, 4, 6, 8, 10]) == 6
    assert evaluations.best_step(by_step, [2, 8]) == 2
    assert evaluations.best_step(by_step, [10]) is None
    assert evaluations.best_step({2: {"All": None}}, [2]) is None

    # What counts as overall.
    composition = {"composition": {"swap": 40.0, "add": 60.0}}
    distillation = {"distillation": {"kl": 0.1, "overlap": 30.0}}
    assert evaluations.overall({"All": 20.0} | composition | distillation) == 20.0
    assert evaluations.overall({"All": 0.0} | composition | distillation) == 0.0
    assert evaluations.overall({"All": None} | composition | distillation) == 30.0
    retrieval = {"retrieval": {"R@1": 70.0, "R@5": 80.0}}
    assert evaluations.overall({"All": 20.0} | retrieval) == 20.0
    assert evaluations.overall({"All": None} | retrieval | distillation) == 30.0
    assert evaluations.overall({"All": None} | retrieval | composition) == 70.0
    assert evaluations.overall({"All": None} | composition) == 50.0
    assert evaluations.overall({"All": None, "composition": {}}) is None


def test_process_0_alone_writes_scores_that_all_know_or_the_run_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    scored = Evaluations(tmp_path, settings_of(every=2))
    scored.add(2, scores(1.0))
    scored.resume(2)
    assert scored.scores.keys() == {2} and not scored.is_due(2)
    assert scored.best([2, 4]) == 2 and not list(tmp_path.iterdir())

    # Scores that cannot be written end the run
    (tmp_path := tmp_path / "next").mkdir()
    monkeypatch.undo()

    def fails(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(evaluations.files, "append", fails)
    with pytest.raises(RuntimeError, match="evaluations.jsonl cannot be written: No space left"):
        Evaluations(tmp_path, settings_of(every=2)).add(2, scores(1.0))


def test_keys_that_do_not_fit_each_other_are_refused():
    settings = settings_of(every=0)
    evaluations.check(settings)

    def changed(every=0, keep_best=False, export="newest", mmeb="", composition=""):
        return dataclasses.replace(
            settings,
            evaluation=dataclasses.replace(
                settings.evaluation, every=every, mmeb=mmeb, composition=composition
            ),
            checkpoint=dataclasses.replace(settings.checkpoint, keep_best=keep_best),
            export=dataclasses.replace(settings.export, checkpoint=export),
        )

    for key in ("mmeb", "composition"):
        evaluations.check(changed(every=1, keep_best=True, export="best", **{key: "x"}))
    own = dataclasses.replace(settings.data, eval="x")
    evaluations.check(dataclasses.replace(changed(every=1), data=own))
    for message, given in (
        ("every=-1 must not be negative", {"every": -1}),
        ("every=1, but there is nothing", {"every": 1}),
        ("keep_best=True: nothing is evaluated", {"keep_best": True, "mmeb": "x"}),
        ("best checkpoint is not kept", {"export": "best", "every": 1, "mmeb": "x"}),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            evaluations.check(changed(**given))
        assert len(str(raised.value).splitlines()) == 1, message
