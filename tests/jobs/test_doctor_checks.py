"""Each problem of the doctor's, planted by itself: its finding, and no other."""

import dataclasses
import importlib.metadata
import os
import shutil
import socket
from types import SimpleNamespace

import jax

from tests.jobs import tiny_run
from tests.jobs.doctor_plants import FINE, OPTIONS, PLANTED, command, named
from tests.tables import for_each
from unime_jax import config, config_reader, files
from unime_jax.jobs import (
    doctor_backbone,
    doctor_environment,
    doctor_model,
    doctor_processes,
    doctor_room,
    doctor_schedule,
)
from unime_jax.jobs.doctor_report import Report


@for_each(("expected", "check"), [*[("", check) for check in FINE], *PLANTED])
def test_a_problem_is_what_is_said_and_nothing_else(expected, check, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64 * 10**6))
    report = Report()
    check(report)
    assert named(report) == expected, report.findings
    for each in report.findings:
        assert each.what[-1] != "." and (each.do[-1:] == "." or each.severity == "note"), each
        assert "\n" not in each.what


def test_what_is_about_this_machine(tmp_path, monkeypatch, data, bucket):
    def looked(joins=False, environment=(), **folders):
        report = Report()
        places = {"proc": tmp_path / "none", "dev": tmp_path / "none"} | folders
        known = doctor_environment.check_devices(
            report, {}, joins=joins, environment=dict(environment), **places
        )
        return named(report), known, [each.check for each in report.unchecked]

    pod = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}
    devices = ["environment.devices"]
    assert looked() == ("", True, [])
    assert looked(True, pod) == ("", False, devices)
    assert looked(False, pod) == ("error environment.pod", False, devices)
    dev, proc = tmp_path / "dev", tmp_path / "proc"
    (proc / "77" / "fd").mkdir(parents=True)
    dev.mkdir()
    (dev / "accel0").touch()
    (proc / "77" / "comm").write_text("python\n")
    unused = ("warning environment.unused", True, [])
    assert looked(dev=dev, proc=proc) == unused
    assert looked(environment={"JAX_PLATFORMS": "cpu"}, dev=dev, proc=proc) == ("", True, [])
    os.symlink(dev / "accel0", proc / "77" / "fd" / "3")
    assert looked(dev=dev, proc=proc) == ("error environment.held", False, devices)
    with monkeypatch.context() as patch:
        platforms = jax.config.values["jax_platforms"]

        def devices_of():
            raise RuntimeError("Unable to initialize backend 'tpu'\nand so on")

        patch.setattr(jax, "devices", devices_of)
        assert looked()[:2] == ("error environment.devices", False)
        jax.config.update("jax_platforms", platforms)

    # Packages that want others than there are.
    versions = {"jax": "0.10.2", "jaxlib": "0.9.0", "libtpu": "0.0.17", "flax": "0.12.8"}
    requires = {
        "jax": ["jaxlib<=0.10.2,>=0.10.1", 'libtpu==0.0.42.*; extra == "tpu"', "numpy>=2.0"],
        "flax": ["jax>=0.10.0", 'jaxlib; extra == "testing"'],
    }
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda name: _of(versions, name))
        patch.setattr(importlib.metadata, "requires", lambda name: _of(requires, name))
        assert [(name, has) for name, _, has in doctor_environment.misfits()] == [
            ("jax", "0.9.0"),
            ("jax", "0.0.17"),
        ]

    # A port that is taken, and one that nobody listens at.
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        given = dict(coordinator=f"localhost:{taken.getsockname()[1]}", num_processes=2)
        report = Report()
        doctor_processes.check(report, command(**given, process_id=0))
        assert named(report) == "error processes.port"
        report = Report()
        doctor_processes.check(report, command(**given, process_id=1))
        assert named(report) == ""
    doctor_processes.check(report, command(**given, process_id=1))
    assert named(report) == "note processes.coordinator"

    # Room, by a model that is traced.
    given = config_reader.read(config.TrainConfig, tiny_run.make_config(data).to_dict())
    backbone = doctor_model.open_backbone(given, doctor_model.longest_of(given))
    model = doctor_model.trace(given, backbone, {}, "v5e:2x4")
    for free, expected in ((10**12, ""), (10**5, "error room.disk")):
        report = Report()
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _, n=free: SimpleNamespace(free=n))
            doctor_room.check_disk(report, {}, model, tmp_path / "run", here=True)
        assert named(report) == expected
    for free, expected in ((10**12, ""), (10**5, "warning room.memory"), (None, "")):
        report = Report()
        doctor_room.check_memory(report, {}, model, free, cpus=True)
        assert (named(report), len(report.unchecked)) == (expected, free is None)
    report = Report()
    doctor_room.check_disk(report, {}, model, files.as_path("gs://bucket/run"), here=True)
    assert report.unchecked[0].check == "room.disk"

    # The time of a step: as given, as measured, as planned, or not known.
    workdir = tmp_path / "run"
    (workdir / "checkpoints" / "40").mkdir(parents=True)
    kept = workdir / "goodput.json"
    timed = dataclasses.replace(OPTIONS, step_seconds=3.0)
    for options, content, planned, expected in (
        (timed, '{"steps": 10, "seconds": {"compute": 20.0}}', 7.0, 3.0),
        (OPTIONS, '{"steps": 10, "seconds": {"compute": 20.0}}', 7.0, 2.0),
        (OPTIONS, '{"steps": 2, "seconds": {"compute": 20.0}}', 7.0, 7.0),
        (OPTIONS, '{"steps": 10, "sec', 7.0, 7.0),
        (OPTIONS, "{}", None, None),
    ):
        kept.write_text(content)
        assert doctor_schedule.step_seconds(options, workdir, planned, "plan")[0] == expected

    # A run that the command would go on with, and evaluations that cost more than the training.
    report = Report()
    doctor_schedule.check_extended(report, workdir, {"steps": 50})
    assert named(report) == "note schedule.resumes" and "step 40" in report.findings[0].what
    for every, expected in ((1, "warning schedule.evaluation"), (5, "")):
        values = tiny_run.with_evaluation(tiny_run.make_config(data))
        values.evaluation.limit = 0
        values.evaluation.every, values.steps, values.batch_size = every, 9, 8
        report = Report()
        read = config_reader.read(config.TrainConfig, values.to_dict())
        doctor_schedule.check_evaluations(report, {}, read)
        assert named(report) == expected, report.findings

    # The backbone makes rows in which a picture, or the pooled token, has no place.
    row = backbone.preprocess
    lost = dataclasses.replace(backbone, preprocess=Changed(row, slot=lambda slot: 0 * slot - 1))
    last = dataclasses.replace(backbone, preprocess=Changed(row, tokens=lambda t: t + len(t)))
    for changed, expected in (
        (backbone, ""),
        (lost, "error backbone.image_marker"),
        (last, "warning backbone.pooled_token"),
    ):
        report = Report()
        doctor_backbone.check(
            report, {}, changed, weights=False, images=True, processing=given.processing
        )
        assert named(report) == expected


@dataclasses.dataclass
class Changed:
    """Rows of a backbone with arrays that are changed."""

    preprocess: object
    slot: object = lambda slot: slot
    tokens: object = lambda tokens: tokens

    @property
    def prompt(self):
        return self.preprocess.prompt

    def __call__(self, item):
        row = self.preprocess(item)
        return dataclasses.replace(row, slot=self.slot(row.slot), tokens=self.tokens(row.tokens))


def _of(values, name):
    if name not in values:
        raise importlib.metadata.PackageNotFoundError(name)
    return values[name]
