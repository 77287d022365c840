"""Rounds of mining, judging and training as one job: interrupted, resumed, extended, refused."""

import functools
import hashlib
import json
import logging
import pathlib

import pytest

from experiments import rounds as experiment
from tests.jobs import tiny_run
from tests.tables import for_each
from unime_jax import config_reader, main
from unime_jax.config import RoundsConfig
from unime_jax.data.mined_rows import DataChangedError
from unime_jax.jobs import preflight_models, rounds

BLOCKS = 2  # of the work of a stand-in for a job
ALL = ["round_0/train"]
ALL += [f"round_{n}/{job}" for n in (1, 2) for job in ("mine", "judge", "train")]


def make_config(data, **changes):
    """A training from scratch and two rounds, of two steps each, on the tiny MiniMMEB."""
    config, tiny = experiment.get_config(), tiny_run.make_config(data)
    config.data.folder = str(data)
    for training in (config.initial, config.train):
        for key in ("batch_size", "chunk_size", "checkpoint", "export", "evaluation"):
            training[key] = tiny[key]
        training.data.prepare.module = ""
        training.data.buckets, training.data.source_run = tiny.data.buckets, tiny.data.source_run
        training.steps, training.checkpoint.every = 2, 1
        training.optimizer.warmup_steps, training.infonce_steps = 1, 0
    config.update_from_flattened_dict(changes)
    return config


class Jobs:
    """Stand-ins for the jobs: what they write follows from the config and the files it names.

    They do their work in blocks, of which they make those that are missing, and die where they are
    told to, once at each place.
    """

    def __init__(self, monkeypatch, *, dies=()):
        self.begun, self.made, self.rows = [], [], "rows"
        self._dies = set(dies)
        for name in ("mine", "judge", "train"):
            monkeypatch.setitem(rounds.JOBS, name, getattr(self, name))
        write = rounds._write_progress

        def write_progress(workdir, complete):
            self._die(complete[-1], "complete")
            write(workdir, complete)

        monkeypatch.setattr(rounds, "_write_progress", write_progress)
        monkeypatch.setattr(preflight_models, "check_judge", lambda *_: None)

    def mine(self, values, workdir):
        self._work(workdir, values.backbone, values.search.ranks)
        record = {"provenance": {"data": self.rows}}
        (workdir / "mined.json").write_text(json.dumps(record))

    def judge(self, values, workdir):
        self._work(workdir / "rows", values.data.mined, values.data.train)

    def train(self, values, workdir):
        made = values.data.train, values.data.mined, values.init_from and f"{values.init_from}/hf"
        self._work(workdir / "hf", *made, values.steps)

    def _work(self, folder, *inputs):
        name = "/".join(part for part in folder.parts[-3:] if part not in ("hf", "rows"))
        name = name[name.index("round_") :]
        self.begun.append(name)
        folder.mkdir(parents=True, exist_ok=True)
        for block in range(BLOCKS):
            self._die(name, block)
            if not (folder / f"{block}.block").exists():
                self.made.append((name, block))
                digest = hashlib.sha256(f"{block}".encode())
                for value in inputs:
                    found = sorted(pathlib.Path(str(value) or "none").glob("**/*.block"))
                    known = [file.read_bytes() for file in found] or [str(value).encode()]
                    digest.update(b"".join(known))
                (folder / f"{block}.block").write_text(digest.hexdigest())

    def _die(self, *place):
        if place in self._dies:
            self._dies.remove(place)
            raise KeyboardInterrupt


def result(workdir):
    return [(workdir / f"round_2/train/hf/{n}.block").read_text() for n in range(BLOCKS)]


@pytest.mark.slow
def test_interrupted_anywhere_it_ends_the_same_and_does_nothing_twice(
    data, tmp_path, monkeypatch, caplog
):
    config = make_config(data, **{"judge.backbone": "judge"})
    jobs = Jobs(monkeypatch)
    rounds.run(config, tmp_path / "straight")
    assert jobs.begun == ALL
    assert [*dict.fromkeys(name for name, _ in jobs.made)] == ALL

    places = [*zip(ALL[:4], (1, "complete", 1, "complete"))]  # whatever job it is
    jobs = Jobs(monkeypatch, dies=places)
    workdir = tmp_path / "run"
    for _ in places:
        with pytest.raises(KeyboardInterrupt):
            rounds.run(config, workdir)
    rounds.run(config, workdir)
    assert jobs.made == [(name, block) for name in ALL for block in range(BLOCKS)]  # none twice
    assert [*dict.fromkeys(jobs.begun)] == ALL
    # Begun again where it died, and by a kill before its end was written; never after that.
    assert [jobs.begun.count(name) for name in ALL] == [2] * 4 + [1] * 3
    assert result(workdir) == result(tmp_path / "straight")

    # What is complete stays; more rounds may be asked for, and keys that do not matter may change.
    jobs = Jobs(monkeypatch)
    allowed = {"rounds": 3, "mine.batch_size": 7, "train.log_every": 5, "initial.mesh.data": 8}
    with caplog.at_level(logging.INFO, "absl"):
        rounds.run(make_config(data, **{"judge.backbone": "judge"} | allowed), workdir)
    assert jobs.begun == [f"round_3/{job}" for job in ("mine", "judge", "train")]
    assert "config.rounds: 2 -> 3" in caplog.text
    changed: dict[str, object] = {
        "rounds": 3,
        "mine.search.ranks": (2, 9),
        "train.steps": 3,
        "start": "first",
    }
    changed |= {"initial.seed": 1, "judge.backbone": ""}
    with pytest.raises(ValueError, match="complete:\n") as error:
        rounds.run(make_config(data, **changed), workdir)
    for key in changed.keys() - {"rounds"}:
        assert f"config.{key}: " in str(error.value)
    assert "config.mine.search.ranks: [1, 50] -> [2, 9]" in str(error.value)
    assert main.says_it_all(error.value)
    # What is not complete yet is left to its part.
    changed = {"train.steps": 3, "judge.judging.margin": 0.5}
    free = make_config(data, **{"judge.backbone": "judge"} | changed)
    rounds.check_config(workdir, free, ALL[:2])
    with pytest.raises(ValueError) as error:
        rounds.check_config(workdir, free, ALL[:3])
    assert "config.judge.judging.margin" in str(error.value)
    assert "config.train.steps" not in str(error.value)
    # Rounds of other rows could not be compared.
    jobs.rows = "others"
    with pytest.raises(
        DataChangedError, match="round_4/mine: the data have changed since .*round_1"
    ):
        rounds.run(make_config(data, **{"judge.backbone": "judge", "rounds": 4}), workdir)


def test_which_model_mines_and_which_is_trained(data, tmp_path, monkeypatch):
    seen = []
    Jobs(monkeypatch)

    def recorded(values, workdir, job):
        seen.append(values)
        job(values, workdir)

    for name, job in dict(rounds.JOBS).items():
        monkeypatch.setitem(rounds.JOBS, name, functools.partial(recorded, job=job))
    rounds.run(make_config(data), tmp_path)
    initial, mine_1, train_1, mine_2, train_2 = seen
    assert (initial.init, initial.init_from, initial.data.mined) == ("random", "", "")
    assert mine_1.backbone == str(tmp_path / "round_0/train/hf")
    assert (train_1.init_from, train_1.data.mined) == (
        str(tmp_path / "round_0/train"),
        str(tmp_path / "round_1/mine"),
    )
    assert mine_2.backbone == str(tmp_path / "round_1/train/hf")
    assert train_2.init_from == str(tmp_path / "round_1/train")
    # The first model again, on judged rows.
    seen.clear()
    config = make_config(data, start="first", **{"judge.backbone": "judge"})
    rounds.run(config, tmp_path / "judged")
    _, _, judge, train_1, mine_2, _, train_2 = seen
    assert judge.data.mined == str(tmp_path / "judged/round_1/mine")
    assert train_2.init_from == "" and train_2.init == "random" and train_2.data.mined == ""
    assert train_2.data.train == str(tmp_path / "judged/round_2/judge/rows")
    assert mine_2.backbone == str(tmp_path / "judged/round_1/train/hf")


@for_each(
    "changes, said",
    [
        ({"rounds": 0}, "config.rounds=0 must be at least 1"),
        ({"train.data.mined": "x"}, "config.train.data.mined='x' is set by each round"),
        ({"train.init_from": "x"}, "name a model by config.backbone"),
        ({"train.data.negatives": 0}, "config.train.data.negatives=0: none of the mined"),
        ({"train.job": "export"}, "config.train.job='export': a round trains"),
        ({"train.init": "random"}, "a model must be trained before it can mine"),
        ({"judge.backbone": "j", "mine.data.first_rows": 3}, "it judges all rows"),
        ({"data.columns": {"query": "q"}}, "config.mine.data.columns={} differs from config.data."),
        # Of keys of a part, as they are named here.
        ({"mine.search.ranks": (3, 2)}, "config.mine.search.ranks=(3, 2): the first rank"),
        ({"train.epochs": 1.0}, "config.train.steps=300 and config.train.epochs=1"),
    ],
)
def test_what_makes_no_sense_is_said_in_the_keys_of_rounds(changes, said):
    config = experiment.get_config("own")
    config.backbone, config.data.train = "model", "pairs.jsonl"
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError) as error:
        config_reader.read(RoundsConfig, config.to_dict())
    assert said in str(error.value)


def test_all_parts_are_looked_at_before_anything_runs(data, tmp_path):
    config = make_config(data, **{"mine.mesh.fsdp": 3, "train.batch_size": 13, "mine.mesh.data": 1})
    config.judge.backbone = str(tmp_path / "judge")
    config.initial.data.weights = {"nowhere": 1.0}
    with pytest.raises(ValueError, match="nothing has been read or built yet") as error:
        rounds.run(config, tmp_path / "run")
    assert main.says_it_all(error.value)
    for said in (
        "config.initial.data.train: no such source: 'nowhere'",
        "config.train.batch_size=13 must be a multiple of 8",
        "config.mine: mesh.data=1 x mesh.fsdp=3",
        "config.judge.backbone: ",
    ):
        assert f"- {said}" in str(error.value), str(error.value)
    config = make_config(data, **{"mine.data.first_rows": 3})
    with pytest.raises(ValueError, match=r"of source '\w+' 24 rows are trained on and 3 mined for"):
        rounds.run(config, tmp_path / "run")
    assert not list((tmp_path / "run").glob("round_*"))
