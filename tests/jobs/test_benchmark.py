"""jobs/benchmark: figures of a case, cases that fail or are kept, and presets that fit together."""

import dataclasses
import io
import json
import pickle
import subprocess

import jax
import numpy as np
import pytest

from experiments import benchmark as recipe
from unime_jax import config, config_reader, sharding
from unime_jax.data import inference_shapes
from unime_jax.data.shapes import Bucket, pair_shapes
from unime_jax.jobs import benchmark, benchmark_case, benchmark_peers, benchmark_report
from unime_jax.jobs import benchmark_rows as rows
from unime_jax.planning import chips, estimate, program

QWEN_CASES = ("train_lora", "encode_text", "encode_image")


@pytest.fixture
def started(monkeypatch):
    """Cases are measured in this process; "killed" ends as by the system. Names, in order."""
    names = []

    def run(command, *, input, stdout, **_):
        request = pickle.loads(input)
        names.append(request.name)
        if request.name == "killed":
            return subprocess.CompletedProcess(command, -9)
        stream = type("Stream", (), {"buffer": io.BytesIO(input)})
        with monkeypatch.context() as patch:
            patch.setattr(benchmark_case.sys, "stdin", stream)
            benchmark_case.main()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    return names


@pytest.mark.slow
def test_a_failure_is_a_line_of_the_table_and_what_is_finished_is_kept(started, tmp_path):
    given = recipe.get_config("cpu")
    text = recipe.encode(recipe.TINY, tokens=64, filled=48, rows=16, image=(56, 56))
    wrong = recipe.encode(recipe.TINY, tokens=64, filled=65, rows=16, image=(56, 56))
    given.cases = {"text": text, "killed": text.copy_and_resolve_references(), "wrong": wrong}
    given.warmup, given.repetitions = 0, 2
    benchmark.run(given, tmp_path)
    benchmark.run(given, tmp_path)
    assert started == ["killed", "text", "wrong", "killed", "wrong"]

    by_name = {x["name"]: x for x in json.loads((tmp_path / "benchmark.json").read_text())["cases"]}
    assert "signal 9, as the system does when memory is used up" in by_name["killed"]["problem"]
    assert "do not fit the bucket" in by_name["wrong"]["problem"]
    measured = by_name["text"]
    assert measured["items"] == 16 and measured["tokens"] == 16 * 48 and measured["finite"]
    assert measured["pad_share"] == pytest.approx(0.25)
    assert 0 < measured["flops"]["useful"] < measured["flops"]["executed"]
    assert measured["memory"]["bytes"] > 0 and measured["memory"]["source"] == "compiler"
    assert measured["mfu"] is None and measured["estimate"] is None  # a CPU has no known peak
    seconds = measured["seconds"]
    assert len(seconds["all"]) == 2 and seconds["least"] <= seconds["median"] <= seconds["most"]
    table = (tmp_path / "benchmark.md").read_text()
    assert "| text | 8 x cpu | 16 |" in table and "| killed |  |  | failed |" in table

    given.cases = {"killed": given.cases["killed"]}
    with pytest.raises(RuntimeError, match="(?s)not one of 1 cases could be measured.*signal 9"):
        benchmark.run(given, tmp_path)
    given.peers.names, given.peers.script = ("gradcache",), "nowhere.py"
    with pytest.raises(ValueError, match="config.peers.script='nowhere.py'. It comes with a clone"):
        benchmark.run(given, tmp_path)


def test_rows_of_a_step_are_those_of_the_program_and_of_the_load():
    given = config_reader.read(config.BenchmarkConfig, recipe.get_config("cpu").to_dict())
    case = given.cases["tiny_train_full"]
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    backbone = benchmark_case._open(case)
    run = program.train_setup(case.run, backbone, mesh, teacher=case.teacher)
    load = estimate.assume(run.shapes, 64, case.rows, case.tokens)
    made = rows.rows_of(backbone, run.shapes, load, image=case.image, seed=0)
    batch, chunks = rows.train_batch(made, run.shapes, case.run.batch_size, load)
    abstract = program.abstract_batch(run.shapes, mesh, case.run.batch_size)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (batch, abstract), is_leaf=_is_array)
    assert shapes[0] == shapes[1]
    assert [int(group.live.sum()) for group in batch.groups] == [32, 32]
    assert tuple(chunks) == estimate.live_chunks(run.shapes, load)
    assert estimate.pad_share(run.shapes, load, chunks) == pytest.approx(0.2)
    with_image, text = batch.groups[1], batch.groups[0]
    of_image = (with_image.slot >= 0).any(axis=(2, 3))
    assert np.array_equal(of_image, with_image.live) and (text.slot < 0).all()
    assert not np.array_equal(with_image.patches[0, 0], with_image.patches[0, 1])

    wrong = dataclasses.replace(load, tokens=(48, 20))
    with pytest.raises(ValueError, match="an image of 56 x 56 pixels has 2 tiles and a row of"):
        rows.rows_of(backbone, run.shapes, wrong, image=case.image, seed=0)


def _is_array(x) -> bool:
    return hasattr(x, "dtype")


def test_real_sizes_fit_their_buckets_and_chips_have_their_names():
    """Of every case of the presets that are not run here, by shapes alone."""
    opened = {}
    for preset in ("h100", "tpu"):
        given = config_reader.read(config.BenchmarkConfig, recipe.get_config(preset).to_dict())
        for name, case in given.cases.items():
            run = case.run
            trains = isinstance(run, config.TrainConfig)
            longest = run.data.buckets[-1].tokens if trains else run.max_length
            key = case.model, longest, run.processing
            backbone = opened[key] = opened.get(key) or benchmark_case._open(case)
            layout = backbone.layout
            if trains:
                distils = run.loss.objective == "distillation"
                assert bool(case.teacher) == distils, name
                shapes = pair_shapes(
                    run.data.buckets,
                    dataclasses.replace(layout, teacher=case.teacher) if distils else layout,
                    batch_size=run.batch_size,
                    negatives=run.data.negatives,
                    chunk_size=run.chunk_size,
                )
                assert not distils or shapes.rows == 768
            else:
                bucket = Bucket(run.max_length, case.tiles)
                shapes = inference_shapes.plan_of(bucket, layout, 1, run.batch_size)
            load = estimate.assume(shapes, shapes.rows, case.rows, case.tokens)
            few = dataclasses.replace(load, rows=tuple(min(n, 1) for n in load.rows))
            made = rows.rows_of(backbone, shapes, few, image=case.image, seed=0)
            lengths = [t for t, n in zip(load.tokens, few.rows) if n]
            assert [len(row.tokens) for row in made] == lengths[::-1], name
        assert {f"{m}_{x}" for m in recipe.QWEN_RECIPES for x in QWEN_CASES} <= set(given.cases)
    assert chips.KINDS["TPU v5 lite"].flops == 197e12
    assert chips.KINDS["NVIDIA H100 80GB HBM3"].flops == 989.4e12


def test_peers_are_told_of_a_case_in_plain_values_and_shown_beside_it(tmp_path):
    given = recipe.get_config("cpu")
    given.peers.names = ("gradcache", "sentence_transformers")
    settings = config_reader.read(config.BenchmarkConfig, given.to_dict())
    case = settings.cases["tiny_train_lora"]
    told = benchmark_peers.described(settings, "gradcache", case, tmp_path)
    assert json.loads(json.dumps(told))["lora"]["rank"] == 16 and told["pairs"] == 32
    script = tmp_path / "peer.py"
    script.write_text(
        "import json, sys\n"
        "request = json.load(sys.stdin)\n"
        "figures = {'problem': '', 'unsupported': False, 'seconds': {'median': 3.0}}\n"
        "figures |= {'cosine': None, 'described': request['work']}\n"
        "open(request['result'], 'w').write(json.dumps(figures))\n"
    )
    folder = tmp_path / "x.peers"
    folder.mkdir()
    peers = dataclasses.replace(settings.peers, script=str(script))
    settings = dataclasses.replace(settings, peers=peers)
    figures = benchmark_peers.measure(settings, "x", case, folder)
    assert list(figures) == ["gradcache"]  # the other one only encodes
    script.write_text("raise SystemExit(3)")
    (folder / "gradcache.json").unlink()
    failed = benchmark_peers.measure(settings, "x", case, folder)
    assert "ended with status 3; its output is in" in failed["gradcache"]["problem"]
    assert benchmark_peers.missing({"peers": failed})

    values = {
        "problem": "", "device": {"kind": "cpu", "count": 1}, "items": 4, "tokens": 8,
        "seconds": {"median": 2.0, "least": 2.0, "most": 2.0}, "pad_share": 0.1, "mfu": 0.4,
        "hardware_mfu": 0.5, "finite": True,
        "memory": {"bytes": 2e9, "source": "device", "program": 1e9},
        "flops": {"useful": 1e12, "executed": 2e12}, "compile_seconds": 1.0, "peers": figures,
        "estimate": {"seconds": 1.0, "bound": "compute"},
    }  # fmt: skip
    table = benchmark_report.table({"x": values})
    assert "| 40% (50%) | 2.00 (device), 1.00 (compiler) | 1.0 | 1, compute (2.00) |" in table
    assert "| gradcache 3 (1.50) |" in table
    assert "- x: gradcache: train" in table
