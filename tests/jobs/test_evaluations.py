"""Runs that are evaluated while they train: scores, kills between them, the best checkpoint."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.jobs import plain_steps, tiny_run
from tests.jobs.tiny_run import checkpoint_steps, metrics, saved
from tests.multihost import launch
from tests.tables import for_each
from unime_jax.export import self_check
from unime_jax.jobs import export, train
from unime_jax.training import evaluations, loop, results

TIMINGS = {"pairs_per_second", "data_wait_share"}


@pytest.fixture
def evaluated(config):
    """A config whose runs are those of `straight`, evaluated after steps 2, 4 and 6."""
    config = tiny_run.with_evaluation(config)
    config.evaluation.every = 2
    return config


@pytest.fixture
def no_export(monkeypatch):
    monkeypatch.setattr(export, "write", lambda *_: None)


@pytest.fixture
def scored(monkeypatch):
    """Has evaluations give these scores of "All", in order; the list shrinks as they are given."""

    def give(percents):
        monkeypatch.setattr(results.suite, "evaluate", lambda *_: (_scores(percents.pop(0)), {}))
        return percents

    return give


def _scores(percent):
    return {"datasets": {"a": percent}, "All": percent, "composition": {}}


def lines(workdir):
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in metrics(workdir)]


def given(workdir):
    """ "All" by step."""
    return {step: scores["All"] for step, scores in evaluations.read(workdir).items()}


@pytest.mark.slow
def test_an_extended_run_is_the_run_that_was_planned_evaluated_or_not(
    evaluated, straight, workdir, monkeypatch
):
    """Four steps of a schedule of six, then two more: `straight` to the bit, scores and all."""
    evaluated.evaluation.rows = 32  # not what is trained, nor `straight`'s
    evaluated.optimizer.schedule_steps = 6
    evaluated.steps = 4
    with monkeypatch.context() as patch:
        patch.setattr(export, "write", lambda *_: None)
        train.run(evaluated, workdir)
    before = json.loads((workdir / "evaluation.json").read_text())
    evaluated.steps = 6
    train.run(evaluated, workdir)
    assert lines(workdir) == lines(straight)
    arrays, others = saved(workdir, 6), saved(straight, 6)
    assert [k for k in arrays if arrays[k].tobytes() != others[k].tobytes()] == []
    exports = [(run / "hf" / "model.safetensors").read_bytes() for run in (workdir, straight)]
    assert exports[0] == exports[1]
    assert "6 of 16 pairs" in (workdir / "report.html").read_text()
    sides = json.loads((workdir / "evaluation.json").read_text())
    assert sides == json.loads((straight / "evaluation.json").read_text())
    assert sides["before"] == before["before"]
    by_step = evaluations.read(workdir)
    assert list(by_step) == [2, 4, 6] and by_step[6] == sides["after"]
    assert all(scores.keys() == sides["after"].keys() for scores in by_step.values())
    (events,) = (workdir / "tensorboard" / "evaluation").iterdir()
    assert events.read_bytes().count(b"evaluation/All") == 4  # before, 2, 4 and 6
    spent = json.loads((workdir / "goodput.json").read_text())["seconds"]
    assert spent["evaluation"] > 0


class Killed(BaseException):
    """The process is gone."""


def test_a_kill_neither_repeats_nor_loses_an_evaluation(
    evaluated, workdir, no_export, plain_step, one_device, scored, monkeypatch
):
    """Of step 4, before its line is written; then again, after it."""
    evaluated.checkpoint.every = 100  # steps that are evaluated are saved
    left = scored([])
    begun, writer, add = [], loop.MetricsWriter, evaluations.Evaluations.add

    def begin(*arguments, **options):
        begun.append(options["resume_step"])
        return writer(*arguments, **options)

    monkeypatch.setattr(loop, "MetricsWriter", begin)
    for moment, percents in (("before", [20.0, 40.0]), ("after", [40.0])):

        def killed(self, step, scores, moment=moment):
            if step == 4 and moment == "before":
                raise Killed
            add(self, step, scores)
            if step == 4:
                raise Killed

        left[:] = percents
        with monkeypatch.context() as patch:
            patch.setattr(evaluations.Evaluations, "add", killed)
            with pytest.raises(Killed):
                train.run(evaluated, workdir)
        assert not left and checkpoint_steps(workdir)[-1] == 4, moment
        assert given(workdir) == {2: 20.0} | ({4: 40.0} if moment == "after" else {}), moment
    left[:] = [0.0, 60.0]  # before, after
    train.run(evaluated, workdir)
    assert begun[1:] == [4, 4]
    assert not left and given(workdir) == {2: 20.0, 4: 40.0, 6: 60.0}
    assert [line["step"] for line in metrics(workdir)] == [1, 2, 3, 4, 5, 6]


def test_a_signal_before_an_evaluation_leaves_it_to_the_next_start(
    evaluated, workdir, no_export, plain_step, one_device, scored, monkeypatch
):
    evaluated.steps = 4
    left = scored([])
    wait = loop.Checkpoints.wait

    def told(self):
        wait(self)
        os.kill(os.getpid(), signal.SIGTERM)
        while not signals[-1].told:
            pass

    signals = []
    enter = train.StopSignal.__enter__
    monkeypatch.setattr(
        train.StopSignal, "__enter__", lambda self: signals.append(self) or enter(self)
    )
    with monkeypatch.context() as patch:
        patch.setattr(loop.Checkpoints, "wait", told)
        with pytest.raises(SystemExit) as ended:
            train.run(evaluated, workdir)
    assert ended.value.code == 143
    assert checkpoint_steps(workdir) == [2] and given(workdir) == {}
    left[:] = [20.0, 0.0, 40.0]  # 2; before, after
    train.run(evaluated, workdir)
    assert not left and given(workdir) == {2: 20.0, 4: 40.0}


def test_a_signal_during_an_evaluation_has_nothing_to_save(
    evaluated, workdir, no_export, plain_step, one_device, monkeypatch
):
    """So that the process ends at once, however long the evaluation is."""
    evaluated.steps = 4
    during, complete = [], []

    def evaluate(*_):
        during.append(signals[-1].unsaved)
        complete.append(checkpoint_steps(workdir)[-1])
        return _scores(0.0), {}

    signals = []
    enter = train.StopSignal.__enter__
    monkeypatch.setattr(
        train.StopSignal, "__enter__", lambda self: signals.append(self) or enter(self)
    )
    monkeypatch.setattr(results.suite, "evaluate", evaluate)
    train.run(evaluated, workdir)
    assert during == [False] * 3 and complete == [2, 4, 4]
    by_step = evaluations.read(workdir)
    assert list(by_step) == [2, 4]
    train.run(evaluated, workdir)  # finished: the end alone is evaluated again
    assert evaluations.read(workdir) == by_step and len(during) == 4


def test_the_best_checkpoint_stays_and_is_exported_if_asked_for(
    evaluated, workdir, plain_step, one_device, scored, monkeypatch
):
    monkeypatch.setattr(self_check, "self_check", lambda *_, **__: 1.0)
    evaluated.checkpoint.update({"every": 1, "keep": 1, "keep_best": True})
    evaluated.export.checkpoint = "best"
    left = scored([70.0, 20.0, 1.0, 60.0, 70.5])  # 2, 4; before, after; after again, of the best
    train.run(evaluated, workdir)
    assert not left and checkpoint_steps(workdir) == [2, 6]
    assert given(workdir) == {2: 70.0, 4: 20.0, 6: 60.0}
    assert json.loads((workdir / "evaluation.json").read_text())["after"]["All"] == 70.5
    assert "2 of 16 pairs" in (workdir / "hf" / "README.md").read_text()
    assert "of step 2" in (workdir / "report.html").read_text()
    exported = load_file(workdir / "hf" / "model.safetensors")
    # The job alone, the other one and this one again.
    for name, steps in (("newest", 4), ("best", 0)):
        evaluated.export.checkpoint = name
        shutil.rmtree(workdir / "hf")
        export.run(evaluated, workdir)
        again = load_file(workdir / "hf" / "model.safetensors")
        assert again.keys() == exported.keys()
        for path, value in again.items():  # so many steps after the best one
            moved = steps * plain_steps.MOVE
            np.testing.assert_allclose(value - exported[path], moved, atol=1e-6, err_msg=path)
    (workdir / evaluations.FILE).unlink()
    with pytest.raises(ValueError, match='checkpoint="best", but .* has no score of a checkpoint'):
        export.run(evaluated, workdir)


@for_each(
    ("changes", "message"),
    [
        ({"evaluation.every": -1}, "evaluation.every=-1 must not be negative"),
        ({"evaluation.every": 2}, "evaluation.every=2, but there is nothing to evaluate"),
        ({"checkpoint.keep_best": True}, "keep_best=True: nothing is evaluated during training"),
        ({"export.checkpoint": "best"}, "the best checkpoint is not kept. Set config.checkpoint"),
        ({"export.checkpoint": "last"}, "export.checkpoint is 'last'; use one of 'newest', 'best'"),
    ],
)
def test_keys_that_do_not_fit_are_named_before_anything_is_trained(
    config, workdir, changes, message
):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        train.run(config, workdir)
    assert not metrics(workdir)


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(evaluated, straight, workdir):
    evaluated.checkpoint.keep_best = True
    launch.finish(evaluated, workdir, 2)
    by_step = evaluations.read(workdir)
    assert list(by_step) == [2, 4, 6]
    assert by_step[6] == json.loads((workdir / "evaluation.json").read_text())["after"]
    for line, other in zip(metrics(workdir), metrics(straight), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
