"""Training by several processes on this machine: the same run as one process makes of it.

Eight virtual devices in all cases. Results are not equal to the last bit: sums over devices of one
process and over those of several are not made in the same order.
"""

import collections
import functools
import json
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from tests import children
from tests.jobs import plain_steps, tiny_run
from tests.jobs.tiny_run import checkpoint_steps, metrics
from tests.multihost import launch, reader, recording
from unime_jax.data import formats, mixture
from unime_jax.jobs import train

# They differ by nature: timings, and how rows are packed, since equal texts are one row only
# within a process.
OWN = {"pairs_per_second", "data_wait_share", "pad_fraction", "duplicate_items"}


def same_losses(workdir, other, steps=6):
    lines, others = metrics(workdir)[:steps], metrics(other)[:steps]
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    assert len(lines) == steps
    for line, expected in zip(lines, others, strict=True):
        assert line.keys() == expected.keys()
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        for name in line.keys() - OWN:
            assert line[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


def same_export(workdir, other, *, atol):
    """Adam's steps are as long for a gradient that is rounding as for any other: see `atol`."""
    files, others = (
        {str(path.relative_to(run)) for path in (run / "hf").rglob("*")} for run in (workdir, other)
    )
    assert files == others
    found, expected = (load_file(run / "hf" / "model.safetensors") for run in (workdir, other))
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=atol, err_msg=name)
    checks = [json.loads((run / "hf/self_check.json").read_text()) for run in (workdir, other)]
    assert checks[0]["inputs"] == checks[1]["inputs"]
    np.testing.assert_allclose(*(check["embeddings"] for check in checks), atol=1e-3)


def until_step(run: launch.Run, workdir: pathlib.Path, step: int) -> None:
    run.wait_until(lambda: [line for line in metrics(workdir) if line["step"] >= step])


def test_two_processes_take_the_steps_of_one(
    config, plain_step, workdir, tmp_path_factory, monkeypatch
):
    """The first two, of the same pairs, without the model; real ones to the end are below."""
    run = launch.start(config, workdir, 2, before=plain_steps.replace_here)
    until_step(run, workdir, 2)
    run.kill()
    monkeypatch.setattr(train.export, "write", lambda *_: None)
    alone = tmp_path_factory.mktemp("plain")
    train.run(config, alone)
    same_losses(workdir, alone, steps=2)


# Two processes, each 4 devices


@pytest.fixture(scope="module")
def pair(data, tmp_path_factory) -> pathlib.Path:
    """Work directory of a run by two processes; in <it>/../records what each did. Read-only."""
    folder = tmp_path_factory.mktemp("pair")
    (folder / "records").mkdir()
    config = tiny_run.make_config(data)
    config.checkpoint.every = 2
    before = functools.partial(recording.record, folder / "records")
    launch.finish(config, folder / "run", 2, before=before)
    return folder / "run"


@pytest.mark.slow
def test_two_processes_train_as_one_does(pair, straight):
    same_losses(pair, straight)
    assert checkpoint_steps(pair) == [4, 6]
    same_export(pair, straight, atol=3e-4)  # of a learning rate of 1.5e-3


@pytest.mark.slow
def test_each_process_reads_its_own_rows(pair, config):
    rows = formats.open_dataset(pathlib.Path(config.data.folder) / config.data.train)
    for process in range(2):
        record = json.loads((pair.parent / "records" / f"{process}.json").read_text())
        picks = mixture.mixture(
            rows,
            dict.fromkeys(rows, 1.0),
            batch_size=config.batch_size,
            source_run=config.data.source_run,
            seed=config.seed,
            process_index=process,
            process_count=2,
        )
        read = [tuple(row) for row in record["rows"]]
        assert len(read) >= config.steps * config.batch_size // 2
        mine = [tuple(picks[number][:2]) for number in range(len(read))]
        assert collections.Counter(read) == collections.Counter(mine)  # threads begin out of order


@pytest.mark.slow
def test_process_0_writes(pair):
    """Beside the arrays of checkpoints, which each process writes the parts of that it has."""
    written = []
    for process in range(2):
        record = json.loads((pair.parent / "records" / f"{process}.json").read_text())
        paths = [pathlib.Path(path) for path in record["written"]]
        inside = [path.relative_to(pair) for path in paths if path.is_relative_to(pair)]
        written.append({str(path) for path in inside if path.parts[:1] != ("checkpoints",)})
    assert {"config.json", "metrics.jsonl", "parameters.txt", "hf/self_check.json"} <= written[0]
    assert written[1] <= {".", ".writable-1"}


def test_each_process_reads_its_own_weights(straight, tmp_path):
    """And they gather them to write them, as export does."""
    coordinator = f"localhost:{launch.free_port()}"
    running = [
        children.start(
            reader.read,
            *(coordinator, n, str(straight / "hf"), tmp_path),
            output=tmp_path / f"{n}.log",
            environment=launch.environment(2),
            jax_options=launch.NO_CACHE,
        )
        for n in range(2)
    ]
    codes = [one.wait(launch.LIMIT) for one in running]
    assert codes == [0, 0], "\n".join(one.said() for one in running)
    found, other = (json.loads((tmp_path / f"{n}.json").read_text()) for n in range(2))
    spread = 0
    for path, (spec, read, size) in found.items():
        if "fsdp" in spec:  # devices of one process have two of four parts along it
            assert read == other[path][1] == size / 2, path
            spread += size
        else:  # in parts along "tensor", each process has them all; a part is read once
            assert read == size, path
    assert spread > sum(size for _, _, size in found.values()) / 2
    tensors = [load_file(run / "model.safetensors") for run in (tmp_path, straight / "hf")]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(np.array_equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


# One, two and four processes from end to end


def whole(data) -> ConfigDict:
    config = tiny_run.with_evaluation(tiny_run.make_config(data))
    config.optimizer.learning_rate = 1e-4
    return config


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("alone") / "run"
    launch.finish(whole(data), workdir, 1)
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_does_the_same(data, alone, tmp_path, processes):
    workdir = tmp_path / "run"
    launch.finish(whole(data), workdir, processes)
    same_losses(workdir, alone)
    same_export(workdir, alone, atol=1e-5)
    scores = [json.loads((run / "evaluation.json").read_text()) for run in (workdir, alone)]
    assert scores[0] == scores[1]
    assert (workdir / "report.html").exists()
    assert {path.name for path in workdir.iterdir()} == {path.name for path in alone.iterdir()}


@pytest.mark.slow
def test_sharded_weights(data, alone, tmp_path):
    """Every process holds parts of all weights, so that export gathers them."""
    config = whole(data)
    config.mesh.update({"data": 1, "fsdp": 4, "tensor": 2})
    launch.finish(config, tmp_path / "run", 2)
    same_losses(tmp_path / "run", alone)
    same_export(tmp_path / "run", alone, atol=1e-5)


@pytest.mark.slow
def test_int8_layers(data, straight, tmp_path):
    """Two processes read the same codes as one does, and write the same merged model."""
    config = whole(data)
    config.mesh.update({"data": 1, "fsdp": 4, "tensor": 2})
    config.backbone, config.init = str(straight / "hf"), "pretrained"
    config.trainable = ((r".*\.lora_(a|b|magnitude)", True), (".*", False))
    config.lora.rank = 4
    config.lora.targets = ((r"language_model\..*_proj", True), (".*", False))
    config.execution.frozen_dtype = "int8"
    for processes in (1, 2):
        launch.finish(config, tmp_path / str(processes), processes)
    same_losses(tmp_path / "2", tmp_path / "1")
    same_export(tmp_path / "2", tmp_path / "1", atol=1e-5)


# Ends


@pytest.mark.slow
@pytest.mark.parametrize(("killed", "then"), [(1, 1), (1, 4), (0, 2)])
def test_a_killed_process_ends_the_others_and_any_number_resumes(
    config, straight, workdir, killed, then
):
    run = launch.start(config, workdir, 2, "--heartbeat_seconds=10")
    until_step(run, workdir, 3)
    run.processes[killed].kill()
    seconds, codes = run.seconds_to_end(), run.wait()
    assert codes[killed] == -signal.SIGKILL and codes[1 - killed] not in (0, -signal.SIGKILL)
    assert seconds < 60
    said = run.said(1 - killed)
    assert "the same command then resumes" in said
    assert (
        "one that says nothing was killed" in said  # the connection to it broke
        or "another task died" in said  # or JAX missed its heartbeat
    )
    if then == 1:
        train.run(config, workdir)
    else:
        launch.finish(config, workdir, then)
    same_losses(workdir, straight)
    same_export(workdir, straight, atol=3e-4)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 6])
def test_one_process_told_to_stop_stops_both(config, straight, workdir, step):
    """At any step; after the last one, while it is saved, as well."""
    config.checkpoint.every = 100
    run = launch.start(config, workdir, 2)
    until_step(run, workdir, step)
    run.processes[1].send_signal(signal.SIGTERM)
    seconds, codes = run.seconds_to_end(), run.wait()
    assert codes == [128 + signal.SIGTERM] * 2, run.said(0) + run.said(1)
    assert seconds < 30
    (stopped,) = checkpoint_steps(workdir)
    assert step <= stopped <= 6 and metrics(workdir)[-1]["step"] == stopped
    launch.finish(config, workdir, 2)
    same_losses(workdir, straight)


@pytest.mark.slow
def test_an_error_in_one_process_is_told_by_all(config, workdir):
    """As a host without the data, or of other software, would make it."""
    other = config.copy_and_resolve_references()
    other.batch_size = 20
    run = launch.start([config, other], workdir, 2)
    assert run.wait() == [1, 1]
    assert "error: config.batch_size=20 must be a multiple of 8" in run.said(1)
    assert "error: process 1 failed, so process 0 ends" in run.said(0)
    assert "config.batch_size=20 must be" in run.said(0)


@pytest.mark.slow
def test_a_url_of_another_store_is_no_workdir():
    """A path made of it would be a folder called "s3:"."""
    done = subprocess.run(
        [sys.executable, "-m", "unime_jax.main", "--config=experiments/stage2.py"]
        + ["--workdir=s3://bucket/run"],
        cwd=tiny_run.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "neither a path nor gs://" in done.stdout + done.stderr
    assert not (tiny_run.ROOT / "s3:").exists()
