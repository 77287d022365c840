"""Negatives from end to end by the commands themselves: mined, judged, trained on, and rounds."""

import json
import pathlib
import shutil
import signal
import time

import pytest

from tests import children
from tests.backbones.tiny_families import DECODER
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.jobs import tiny_run
from tests.models.oracle import pair_of, picture
from tests.multihost import launch
from unime_jax import main
from unime_jax.data.mined_table import open_mined

TEXT = DECODER | dict(hidden_size=32, num_attention_heads=2, num_key_value_heads=1)
BUCKETS = "(Bucket(tokens=40, tiles=0), Bucket(tokens=56, tiles=3))"
SECONDS = 1500  # of a command, on a busy machine


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> pathlib.Path:
    """A tiny random Qwen2-VL with its language-model head."""
    folder = tmp_path_factory.mktemp("judge") / "model"
    return pair_of(write_qwen2_vl(folder, mrope_section=(2, 3, 3), text=TEXT)).backbone.folder


@pytest.fixture(scope="module")
def own(straight, tmp_path_factory) -> pathlib.Path:
    """A folder with pairs.jsonl, of texts and of images, and with a small model."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(straight / "hf", folder / "model")
    (folder / "images").mkdir()
    rows = []
    for number in range(24):
        (folder / f"images/{number}.png").write_bytes(picture(24, 24, number))
        picked = {"text": f"<|image_1|>\nwhat is {number}?", "image": f"images/{number}.png"}
        rows.append(
            {
                "query": picked if number % 2 else f"a thing of number {number}",
                "positive": f"it is {number}",
            }
        )
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def start(workdir: pathlib.Path, *flags: str) -> children.Child:
    output = workdir.with_name(f"{workdir.name}_{time.monotonic_ns()}.log")
    return children.start(main.run, output=output, argv=[*flags, f"--workdir={workdir}"])


def command(workdir: pathlib.Path, *flags: str) -> str:
    """What the command says that ends well."""
    child = start(workdir, *flags)
    assert child.wait(timeout=SECONDS) == 0, child.said()
    return child.said()


def exported(workdir: pathlib.Path) -> bytes:
    return (workdir / "hf" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_mini_mmeb_is_mined_judged_and_trained_on(data, straight, judge, tmp_path):
    rows = f"--config.data.folder={data}"
    trained = ("--config.steps=2", "--config.batch_size=16", "--config.chunk_size=16", rows)
    trained += ("--config.data.prepare.module=", f"--config.data.buckets={BUCKETS}")
    trained += ("--config.infonce_steps=0", "--config.export.verify=False")
    trained += tuple(f"--config.evaluation.{key}=" for key in ("mmeb", "composition", "images"))
    command(
        tmp_path / "mined",
        *("--config=experiments/mine.py", rows, "--config.data.train=mini_mmeb/train"),
        *(f"--config.backbone={straight / 'hf'}", "--config.search.ratio=None"),
    )
    table = open_mined(tmp_path / "mined")
    assert all((table.row(name, 0)["number"] >= 0).any() for name in table.rows)
    mined = f"--config.data.mined={tmp_path / 'mined'}"
    command(tmp_path / "hard", "--config=experiments/stage2.py", *trained, mined)
    command(tmp_path / "plain", "--config=experiments/stage2.py", *trained)
    assert exported(tmp_path / "hard") != exported(tmp_path / "plain")
    command(
        tmp_path / "judged",
        *("--config=experiments/judge.py", rows, mined, f"--config.backbone={judge}"),
        "--config.judging.keep=4",
    )
    command(
        tmp_path / "v2",
        *("--config=experiments/unime_v2.py", *trained, "--config.data.negatives=4"),
        f"--config.data.train={tmp_path / 'judged' / 'rows'}",
    )
    for line in tiny_run.metrics(tmp_path / "v2"):
        assert line["judged_queries"] == 16 and line["judge_loss"] > 0


def rounds_of(own: pathlib.Path, variant: str) -> list[str]:
    training = ("steps=3", "batch_size=8", "chunk_size=8", "log_every=1", "checkpoint.every=1")
    training += ("optimizer.warmup_steps=1", "export.verify=False", "data.negatives=2")
    mining = ("search.ratio=None", "search.margin=None", "search.negatives=3", "search.ranks=(1,6)")
    mining += ("search.rows=8", "search.fill=False", "output.block=8")
    return [
        f"--config=experiments/rounds.py:{variant}",
        *(f"--config.backbone={own / 'model'}", f"--config.data.train={own / 'pairs.jsonl'}"),
        *(f"--config.train.{key}" for key in training),
        *(f"--config.mine.{key}" for key in mining),
    ]


@pytest.mark.slow
def test_rounds_on_own_rows_killed_in_every_part_end_the_same(own, judge, tmp_path):
    flags = rounds_of(own, "unime_v2")
    flags += [f"--config.judge.backbone={judge}", "--config.judge.max_length=512"]
    flags += ["--config.judge.dtype=float32", "--config.judge.data.block=6"]
    flags += ["--config.judge.judging.margin=None"]
    command(tmp_path / "straight", *flags)

    workdir = tmp_path / "killed"
    for begun in (
        "round_1/mine/queries/*.npy",
        "round_1/mine/negatives/*.npy",
        "round_1/judge/rows/*.jsonl",
        "round_1/train/checkpoints/1",
        "round_1/train/hf/self_check.json",
        "round_2/mine/candidates/*.npy",
        "round_2/train/checkpoints/2",
    ):
        child, end = start(workdir, *flags), time.monotonic() + SECONDS
        while not list(workdir.glob(begun)):
            assert child.poll() is None and time.monotonic() < end, child.said()
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        assert child.wait(timeout=60) == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in workdir.glob("round_1/*/**/*.[nj][ps]*")}
    assert done
    said = command(workdir, *flags)
    assert "round_1/train is complete" in said
    assert {path: path.stat().st_mtime_ns for path in done} == done
    for number in (1, 2):
        ours, others = (folder / f"round_{number}" for folder in (workdir, tmp_path / "straight"))
        assert open_mined(ours / "mine").content == open_mined(others / "mine").content
        assert exported(ours / "train") == exported(others / "train")
    assert exported(workdir / "round_1/train") != exported(workdir / "round_2/train")
    assert command(workdir, *flags).count(" is complete") >= 6


@pytest.mark.slow
def test_two_processes_share_the_rounds(own, tmp_path):
    flags = rounds_of(own, "own")
    port = launch.free_port()
    flags += [f"--workdir={tmp_path / 'run'}", "--num_processes=2"]
    started = [
        children.start(
            main.run,
            output=tmp_path / f"{number}.log",
            argv=[*flags, f"--coordinator=localhost:{port}", f"--process_id={number}"],
            environment=launch.environment(2),
            jax_options=launch.NO_CACHE,
        )
        for number in range(2)
    ]
    codes = [child.wait(timeout=SECONDS) for child in started]
    assert codes == [0, 0], "\n".join(child.said() for child in started)
    complete = json.loads((tmp_path / "run/rounds.json").read_text())["complete"]
    assert complete == [f"round_{n}/{job}" for n in (1, 2) for job in ("mine", "train")]
    for number in (1, 2):
        assert tiny_run.metrics(tmp_path / f"run/round_{number}/train")[-1]["step"] == 3
