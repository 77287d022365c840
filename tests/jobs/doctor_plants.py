"""Problems that the doctor looks for, each planted by itself, and what is fine beside them."""

import dataclasses
from collections import defaultdict
from types import SimpleNamespace

import numpy as np

from data_pipelines.validate.repeats import Repeats, Share
from data_pipelines.validate.scan import Finding, Findings
from experiments import stage2, unime_v2
from unime_jax import config, config_reader
from unime_jax.data.settings import Bucket
from unime_jax.data.shapes import BatchShapes, Layout
from unime_jax.jobs import (
    doctor_batches,
    doctor_data,
    doctor_environment,
    doctor_plan,
    doctor_processes,
    doctor_room,
    doctor_schedule,
    doctor_settings,
)
from unime_jax.jobs.doctor_rows import Pair, Sample
from unime_jax.planning import chips, memory

NONE = Share(0, 0.0, 0.0)
OPTIONS = config.DoctorOptions(
    rows=64, slice="", compile=False, step_seconds=None, lost_minutes=30.0
)


def settings(recipe=stage2, **changes):
    values = recipe.get_config()
    values.update_from_flattened_dict({key.replace("__", "."): v for key, v in changes.items()})
    return config_reader.read(config.TrainConfig, values.to_dict())


def items(count, prefix):
    return [f"{prefix}{number}".encode() for number in range(count)]


def pairs(count=64, *, queries=None, targets=None, negatives=1, scored=True, source="a"):
    queries, targets = queries or items(count, "q"), targets or items(count, "t")
    own = tuple(items(negatives, "n"))
    return [Pair(source, q, t, own, scored, False) for q, t in zip(queries, targets, strict=True)]


def sample(own=None, *, kinds=(), same_target=NONE, same_query=NONE, sizes=((20, 0),), **changes):
    """A good sample, but for what is given; `kinds`: of findings, and how many rows have them."""
    findings = defaultdict(Findings)
    for kind, count in dict(kinds).items():
        findings[kind].count = count
        findings[kind].rows = [Finding("train", "a", "line 3", "7", "", "a reason")]
    own = pairs() if own is None else own
    good = Sample(
        rows={"a": 10_000},
        weights={"a": 1.0},
        looked={"a": len(own)},
        pairs=own,
        findings=findings,
        repeated=Repeats(1, 1, same_target, same_query),
        sizes=np.array(sizes * 100),
        unusable={"a": 0},
    )
    return dataclasses.replace(good, **changes)


def of_data(given, **changes):
    return lambda report: doctor_data.check(report, settings(**changes), given)


def of_batches(given, shapes=None, **changes):
    def check(report):
        doctor_batches.check(report, {}, settings(**changes), given, shapes)
        report.unchecked.clear()

    return check


def of_settings(parameters=10**6, **changes):
    def check(report):
        given = settings(**changes)
        model = SimpleNamespace(settings=given, parameters=parameters)
        doctor_settings.check(report, given, model)

    return check


def of_checkpoints(seconds, **changes):
    def check(report):
        doctor_schedule.check_checkpoints(report, {}, settings(**changes), seconds, "measured", 30)

    return check


def command(**given):
    known = dict(recipe="stage2", distributed=False, coordinator=None, process_id=None)
    return config.Command(**known | {"num_processes": None} | given)


def of_processes(**given):
    return lambda report: doctor_processes.check(report, command(**given))


def shapes(*buckets, chunk=8):
    return BatchShapes(buckets, Layout(), chunk, 128)


def needs(report, peak=None, **bytes_):
    given = dict(weights=0, optimizer=0, inputs=0, gradients=0, activations=0, temporaries=None)
    needed = memory.Memory(**given | bytes_, peak=peak, capacity=int(16e9))
    known = needed.held + needed.gradients + needed.activations
    doctor_plan._judge(report, chips.parse("v5e:2x2"), needed, known)


FINE = [
    of_data(sample()),
    of_batches(sample()),
    of_batches(sample(), shapes(Bucket(24, 0))),
    of_settings(),
    of_settings(init="pretrained", lora__rank=16, optimizer__learning_rate=2e-5, infonce_steps=0),
    of_settings(
        7 * 10**9, init="pretrained", optimizer__learning_rate=5e-6, infonce_steps=0
    ),  # LLaVE's
    of_checkpoints(1.0),
    of_checkpoints(None),
    of_processes(),
    of_processes(distributed=True),
    lambda report: needs(report, weights=10e9),
    lambda report: needs(report, weights=15e9, peak=15.5e9),
    lambda report: doctor_environment.check_limits(report, workers=8, sources=20, soft=1024),
    lambda report: doctor_environment.check_clock(report),
    lambda report: doctor_environment.check_versions(report, {}),
]
PLANTED = [
    ("error data.unusable", of_data(sample(kinds={"unusable_rows": 9}, unusable={"a": 9}))),
    ("warning data.unusable", of_data(sample(kinds={"unusable_rows": 1}, unusable={"a": 1}))),
    (
        "error data.unusable_source, warning data.unusable",
        of_data(
            sample(
                kinds={"unusable_rows": 1},
                looked={"a": 64, "b": 1},
                unusable={"a": 0, "b": 1},
            )
        ),
    ),
    ("warning data.cut_texts", of_data(sample(kinds={"cut_texts": 30}))),
    ("note data.cut_texts", of_data(sample(kinds={"cut_texts": 1}))),
    ("warning data.markers_without_image", of_data(sample(kinds={"markers_without_image": 1}))),
    ("warning data.tiny_images", of_data(sample(kinds={"tiny_images": 1}))),
    ("warning data.positives_among_negatives",
     of_data(sample(kinds={"positives_among_negatives": 1}))),
    ("warning data.duplicate_pairs", of_data(sample(kinds={"duplicate_pairs": 9}))),
    ("warning data.query_is_target", of_data(sample(pairs(targets=items(64, "q"))))),
    ("warning data.queries_alike", of_data(sample(pairs(queries=[b"q"] * 64)))),
    ("warning data.false_negatives",
     of_data(sample(same_target=Share(9, 0.1, 0.02)), loss__mask_same_target=False)),
    ("warning data.false_negatives", of_data(sample(same_query=Share(9, 0.1, 0.02)))),
    ("", of_data(sample(same_target=Share(9, 0.1, 0.02)))),  # which are masked
    ("note data.no_negatives", of_data(sample(pairs(negatives=0)))),
    ("warning data.no_negatives",
     of_data(sample(pairs(negatives=0)), loss__hardness=5.0, loss__hardness_on="explicit")),
    ("note data.unread_negatives", of_data(sample(), data__negatives=0)),
    ("note data.no_negatives, warning data.closed_without_negatives",
     of_data(sample(pairs(negatives=0)), loss__closed_sources=("a",))),
    ("error data.no_scores",
     lambda report: doctor_data.check(report, settings(unime_v2), sample(pairs(scored=False)))),
    ("warning batches.k", of_batches(sample(pairs(targets=[b"1", b"2"] * 32)))),
    ("warning batches.too_easy",
     of_batches(sample(pairs(targets=[b"1", b"2"] * 32)), loss__hard_negatives=None)),
    ("", lambda report: doctor_batches._check_difficulty(  # a query's own candidates alone
        report, {}, settings(unime_v2, loss__contrastive_weight=0.0),
        sample(pairs(targets=[b"1", b"2"] * 32)))),
    ("warning batches.few_rows", of_batches(sample(rows={"a": 50}))),
    ("warning batches.passes",
     of_batches(sample(rows={"a": 900}), init="pretrained", infonce_steps=0)),
    ("warning batches.small_source",
     of_batches(sample(rows={"a": 10**6, "b": 500}, weights={"a": 1.0, "b": 1.0}))),
    ("error batches.no_bucket", of_batches(sample(), shapes(Bucket(16, 0)))),
    ("warning batches.no_bucket",
     of_batches(sample(sizes=((9, 0),) * 99 + ((20, 0),)), shapes(Bucket(16, 0)))),
    ("warning batches.bucket_share",
     of_batches(sample(sizes=((9, 0),)), shapes(Bucket(10, 0, share=0.1), Bucket(12, 0)))),
    ("note batches.padding", of_batches(sample(), shapes(Bucket(64, 0)))),
    ("warning batches.padding", of_batches(sample(), shapes(Bucket(200, 0)))),
    ("warning settings.warmup", of_settings(optimizer__warmup_steps=600)),
    ("warning settings.temperature", of_settings(loss__temperature=50.0)),
    ("warning settings.temperature", of_settings(loss__temperature=1e-3)),
    ("warning settings.hardness", of_settings(loss__hardness=100.0)),
    ("error settings.seed", of_settings(seed=-1)),
    ("error settings.seed", of_settings(data__prepare__seed=2**63)),
    ("note settings.infonce_steps", of_settings(init="pretrained")),
    ("warning settings.init", of_settings(lora__rank=8, optimizer__learning_rate=1e-4)),
    ("warning settings.learning_rate",  # of adapters, for all weights of 7B
     of_settings(7 * 10**9, init="pretrained", optimizer__learning_rate=1e-4, infonce_steps=0)),
    ("warning settings.learning_rate",  # and the other way round
     of_settings(init="pretrained", lora__rank=16, optimizer__learning_rate=5e-6, infonce_steps=0)),
    ("warning settings.learning_rate", of_settings(optimizer__learning_rate=0.5)),
    ("warning schedule.checkpoint", of_checkpoints(60.0)),
    ("warning schedule.checkpoint", of_checkpoints(None, checkpoint__every=700)),
    ("warning schedule.keep", of_checkpoints(1.0, checkpoint__keep=1)),
    ("error schedule.checkpoint", of_checkpoints(1.0, checkpoint__every=0)),
    ("error plan.memory", lambda report: needs(report, weights=10e9, activations=7e9)),
    ("warning plan.memory", lambda report: needs(report, weights=14e9)),
    ("error plan.memory", lambda report: needs(report, weights=1e9, peak=17e9)),
    ("error processes.coordinator", of_processes(coordinator="node0")),
    ("error processes.numbers", of_processes(coordinator="node0:1234", process_id=1)),
    ("error processes.numbers",
     of_processes(coordinator="node0:1234", process_id=2, num_processes=2)),
    ("error processes.coordinator",
     of_processes(coordinator="node0.invalid:1234", process_id=1, num_processes=2)),
    ("warning environment.open_files",
     lambda report: doctor_environment.check_limits(report, workers=64, sources=20, soft=1024)),
    ("warning environment.clock", lambda report: doctor_environment.check_clock(report, 1e9)),
    ("warning room.shared_memory",
     lambda report: doctor_room.check_shared_memory(report, 8, "/small")),
    ("", lambda report: doctor_room.check_shared_memory(report, 0, "/small")),
]  # fmt: skip


def named(report):
    return ", ".join(f"{each.severity} {each.check}" for each in report.findings)
