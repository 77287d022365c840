"""Runs that are killed, begun by other processes, or gone on with as something else."""

import json
import os
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments import embed as experiment
from tests import children
from tests.backbones.checkpoints import tensors
from tests.jobs.embedding.corpus import (
    EXACT,
    IDS,
    PREFIX,
    content,
    make_config,
    settings_of,
    vectors,
    with_lines,
)
from tests.jobs.embedding.forked import run_all
from tests.jobs.tiny_run import environment
from tests.multihost.launch import free_port
from unime_jax import main
from unime_jax.data.embedding_store import item_id, open_embeddings
from unime_jax.jobs import embed


def part(given, workdir, process, count) -> bool:
    """What one process of several does."""
    work = embed.begin(settings_of(given), workdir)
    return embed.embed(work, process_index=process, process_count=count)


def test_processes_share_the_blocks(given, straight, tmp_path):
    """In whatever order they end, the last one completes the folder; bit for bit the same."""
    workdir = tmp_path / "shared"
    assert [part(given, workdir, p, 3) for p in (2, 0, 1)] == [False, False, True]
    assert content(workdir) == content(straight)

    # Resumed by another number of processes
    workdir = tmp_path / "resumed"
    assert not part(given, workdir, 1, 3)
    (kept,) = workdir.glob("vectors/*.npy")
    assert kept.name == "000001.npy"
    written = kept.stat().st_mtime_ns
    embed.run(given, workdir)
    assert kept.stat().st_mtime_ns == written
    assert content(workdir) == content(straight)


def test_resumed_on_other_devices(monkeypatch, given, straight, tmp_path):
    """Whole blocks stay as they are, the others are the same up to rounding."""
    workdir = tmp_path / "resumed"
    part(given, workdir, 0, 2)
    before = content_of_blocks(workdir)
    monkeypatch.setattr(jax, "local_devices", jax.devices)
    assert len(jax.local_devices()) == 8
    embed.run(given, workdir)
    after = content_of_blocks(workdir)
    assert len(before) == 2 and len(after) == 4 and before.items() <= after.items()
    assert list(open_embeddings(workdir).ids) == IDS
    np.testing.assert_allclose(vectors(workdir), vectors(straight), atol=EXACT)


def content_of_blocks(workdir):
    return {file.name: file.read_bytes() for file in workdir.glob("vectors/*.npy")}


def test_a_complete_folder_reads_no_weights(monkeypatch, given, straight, tmp_path):
    before = content(straight)
    monkeypatch.setattr(embed, "Embedder", None)
    embed.run(given, shutil.copytree(straight, tmp_path / "copy"))
    assert content(tmp_path / "copy") == before


MOMENTS = [  # files of a run: the record, ids and vectors of each block, all ids, the record again
    (1, "half"),  # of the record
    (1, "after"),
    (1, "after"),  # of a block's ids
    (2, "half"),  # of its vectors
    (3, "half"),  # of the next one's ids
    (6, "unnamed"),  # of the last one's vectors
    (3, "half"),  # of all ids
    (2, "unnamed"),  # of the record that says that the folder is complete
    (2, "after"),  # of it, but nothing is tidied up
]


@pytest.fixture(scope="module")
def forked(pair, tmp_path_factory):
    """A folder of four work directories, and how the processes that wrote each have ended."""
    folder = tmp_path_factory.mktemp("forked")
    config = with_lines(make_config(pair), folder).to_dict()
    child = children.start(
        run_all,
        *(config, folder, MOMENTS, free_port()),
        output=folder / "log",
        environment=of_one_device(),
    )
    assert child.wait(timeout=300) == 0, child.said()
    return folder, json.loads((folder / "ends.json").read_text())


def of_one_device() -> dict[str, str]:
    """Environment of processes that have one device, as this one seems to have."""
    return environment(
        XLA_FLAGS=os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    )


@pytest.mark.slow
def test_killed_at_any_moment(forked):
    folder, statuses = forked
    assert statuses["straight"] == statuses["plain"] == [0]
    assert statuses["killed"] == [-signal.SIGKILL] * len(MOMENTS) + [0]
    assert content(folder / "killed") == content(folder / "plain")
    store = open_embeddings(folder / "killed")
    cosines = vectors(folder / "killed") @ vectors(folder / "killed").T
    assert np.max(cosines - 2 * np.eye(13)) < 0.999, "otherwise the order could not be seen"
    assert list(store.ids) == [item_id(f"number {n}") for n in range(13)]
    assert not list((folder / "killed").rglob("*.tmp"))

    # Two processes that know of each other. As on a pod; each has its own devices only, and writes
    # to the same folder.
    folder, statuses = forked
    assert statuses["pair"] == [0, 0]
    assert list(open_embeddings(folder / "pair").ids) == [item_id(f"number {n}") for n in range(13)]
    np.testing.assert_allclose(vectors(folder / "pair"), vectors(folder / "straight"), atol=EXACT)


def test_the_command_line_killed_from_outside(lines, tmp_path):
    """At no moment that was chosen."""
    workdir = tmp_path / "run"
    flags = [
        f"--config.backbone={lines.backbone}",
        f"--config.data.folder={tmp_path}",
        "--config.data.datasets=()",
        '--config.data.texts=("texts.txt",)',
        "--config.output.block=1",
        "--config.batch_size=1",
    ]
    process = children.start(
        main.run,
        output=tmp_path / "log",
        argv=["--config=experiments/embed.py", *flags, f"--workdir={workdir}"],
        environment=of_one_device(),
    )
    while not list(workdir.glob("vectors/*.npy")):
        assert process.poll() is None, process.said()
        time.sleep(0.02)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    with pytest.raises(ValueError, match="not complete, .* run the command that writes it again"):
        open_embeddings(workdir)
    resumed = experiment.get_config()
    resumed.backbone = lines.backbone
    resumed.data.update(lines.data)
    resumed.output.block = 1
    embed.run(resumed, workdir)
    assert len(open_embeddings(workdir)) == 13


def test_another_run_is_refused(pair, given, splits, straight, tmp_path):
    """The message says what changed; nothing is written."""
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)

    def refused(*messages):
        before = {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()}
        with pytest.raises(ValueError, match="begun with something else") as error:
            embed.run(given, workdir)
        for message in messages:
            assert message in str(error.value)
        after = {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()}
        assert after == before

    given.prefix = ""
    refused('provenance.prefix: "Represent: " before, "" now')
    given.prefix = PREFIX
    given.max_length = 100
    refused("provenance.model.max_length: 128 before, 100 now")
    given.max_length = 128
    given.output.dtype = "float16"
    refused('dtype: "float32" before, "float16" now')
    given.output.dtype = "float32"
    splits["b"][0]["pos_text"] = "an ellipse"
    refused("provenance.corpus.ids: ", "provenance.corpus.items: 13 before, 14 now")
    splits["b"][0]["pos_text"] = "a circle"
    other = tmp_path / "other"
    shutil.copytree(pair.backbone.folder, other)
    given.backbone = str(other)
    embed.run(given, workdir)  # the same files elsewhere are the same model
    weights = tensors(other)
    next(iter(weights.values())).flat[0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    refused("provenance.model.files.model.safetensors: ")
