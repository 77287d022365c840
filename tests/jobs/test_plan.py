"""jobs/plan from config to files: tables, JSON, cache, what to change, and life without libtpu."""

import dataclasses
import importlib.metadata
import json
import re

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from experiments import plan as plans
from tests.backbones.tiny_folders import write_folder
from tests.tables import for_each
from unime_jax import backbones
from unime_jax.backbones.io import model_folders
from unime_jax.data import length_sample
from unime_jax.data.settings import Bucket
from unime_jax.jobs import plan
from unime_jax.planning import chips, compiler, memory, report
from unime_jax.training import chunk_choice


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_folder(tmp_path_factory.mktemp("model")))


def training(model):
    """The plan of a step of a tiny model on what has the size of a v5e:2x4."""
    planned = plans.get_config("stage2")
    planned.topologies, planned.model = ("v5e:2x4",), model
    run = planned.run
    run.batch_size, run.chunk_size = 16, 8
    run.mesh.data, run.mesh.fsdp = 1, -1
    run.data.buckets = (Bucket(tokens=16, tiles=0),)
    return planned


@pytest.fixture
def given(model):
    return training(model)


def embedding(model, *topologies):
    """The plan of an embedding job, which compiles in a second or two."""
    planned = plans.get_config("embed")
    planned.run.max_length, planned.model, planned.topologies = 64, model, topologies
    return planned


def no_devices(where):
    raise compiler.NoCompilerError("libtpu is not installed.")


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(compiler, "devices", no_devices)


@pytest.fixture(scope="module")
def drafts(model, tmp_path_factory):
    """The work directory of two plans without a compiler; the second one names two slices."""
    workdir = tmp_path_factory.mktemp("drafts")
    step, job = training(model), embedding(model, "v5e:2x2")
    step.name, step.topologies = "step", ("v5e:4x4", "v5e:2x4")
    recipes = {"embed": job.to_dict() | {"name": "embed"}, "step": step.to_dict()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "devices", no_devices)
        plan.run(ConfigDict({"job": "plan", "recipes": recipes}), workdir)
    return workdir


@pytest.fixture
def cpu_compiler(monkeypatch):
    """Virtual CPU devices in the place of chips; counts what is compiled."""
    asked = []

    def compile_program(*arguments):
        asked.append(arguments)
        return compiler_itself(*arguments)

    compiler_itself = compiler.compile_program
    monkeypatch.setattr(compiler, "devices", lambda where: jax.devices()[: where.chips])
    monkeypatch.setattr(compiler, "compile_program", compile_program)
    return asked


@pytest.fixture
def proportional_compiler(monkeypatch):
    """Takes a kilobyte for every row of a chunk, and does not compile; counts what it is asked."""
    asked = []

    def compile_program(program, where, cache):
        asked.append(program)
        temporaries = 1000 * program.shapes.chunk_size
        peak = compiler.argument_bytes(program) + temporaries
        too_large = peak > where.chip.hbm
        text = "ENTRY %main (p: f32[]) -> f32[] {\n}"
        return compiler.Compiled(temporaries, peak, too_large, text)

    monkeypatch.setattr(compiler, "devices", lambda where: jax.devices()[: where.chips])
    monkeypatch.setattr(compiler, "compile_program", compile_program)
    return asked


@pytest.fixture
def with_hbm(monkeypatch):
    """Sets how many bytes a v5e chip has."""
    chip = chips.CHIPS["v5e"]

    def set_bytes(size):
        monkeypatch.setitem(chips.CHIPS, "v5e", dataclasses.replace(chip, hbm=float(size)))

    return set_bytes


def read(workdir):
    return json.loads((workdir / "plan.json").read_text())["plans"]


def test_without_a_compiler_also_several_in_one_call(drafts, model, no_compiler, monkeypatch):
    """Arguments and FLOPs are exact, the rest is said to be unknown, and nothing is cached."""
    *_, step = read(drafts)
    sizes, work = step["memory"], step["work"]
    assert step["compiler"] == "" and step["fits"] is None and step["chips"] == 8
    assert sizes["weights"] > 0 and sizes["inputs"] > 0 and sizes["peak"] is None
    assert sizes["optimizer"] == pytest.approx(2 * sizes["gradients"], rel=0.01)
    assert 0 < work["useful"] < work["executed"] and work["ici"] is None
    assert step["estimate"]["bound"] == "compute"
    assert step["settings"]["load"] == {"rows": [64], "tokens": [16], "filled": []}
    text = (drafts / "plan.md").read_text()
    assert "WARNING: without libtpu nothing was compiled" in text
    assert report.NOTE in text and "has the shapes of" in text
    assert not list(drafts.glob("cache/*"))

    # Several plans in one call
    plans = [(entry["recipe"], entry["topology"]) for entry in read(drafts)]
    assert plans == [("embed", "v5e:2x2"), ("step", "v5e:4x4"), ("step", "v5e:2x4")]

    # Keys that follow from a chip's memory may be open; a layer is traced once a choice
    monkeypatch.setattr(chunk_choice, "ORDER", ("none", "full"))
    given = training(model)
    given.run.chunk_size, given.run.execution.remat = 0, "auto"
    (planned,) = plan.read(given.to_dict())
    chosen = plan.Recipe(planned, drafts)._with_memory("v5e:2x4")
    assert chosen.chunk_size % 8 == 0 < chosen.chunk_size and chosen.execution.remat == "none"

    # Buckets by a file of lengths, and the load that follows from it
    given.run.data.buckets, given.lengths = (), str(drafts / "lengths.csv")
    lines = [f"{n // 2},{5 + n % 7},0" for n in range(24)] + ["12,40,0"]
    (drafts / "lengths.csv").write_text("\n".join(["pair,tokens,tiles", *lines]))
    (planned,) = plan.read(given.to_dict())
    recipe = plan.Recipe(planned, drafts)
    entry = recipe.attempt("v5e:2x4", recipe._with_memory("v5e:2x4"))
    assert entry.settings["buckets"] and sum(entry.settings["load"]["rows"]) == 31
    assert sum(entry.settings["load"]["filled"]) <= 31 and 0 < entry.settings["pad_share"] < 1
    for text, message in (
        ("pair,tokens\n", "its first line pair,tokens,tiles"),
        ("pair,tokens,tiles\n0,3,0\n0,x,0\n", "line 3 is not three whole numbers"),
        ("pair,tokens,tiles\n0,0,0\n", "line 2 is no item"),
    ):
        (drafts / "lengths.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            plan.Recipe(planned, drafts)

    # A batch that does not fit the slice is one line of the table
    _, wrong, step = read(drafts)
    assert "config.chunk_size=8 must be a multiple of 16" in wrong["problem"]
    assert wrong["memory"] is None and wrong["fits"] is False
    assert step["problem"] == "" and step["memory"]

    # An embed job
    job, *_ = read(drafts)
    assert job["memory"]["optimizer"] == job["memory"]["gradients"] == 0
    assert job["hours"] is None and job["work"]["useful"] > 0

    # Json there and back
    *_, step = read(drafts)
    entry = report.entry_from_json(step)
    assert isinstance(entry.memory, memory.Memory)
    assert report.entry_to_json(entry) == step


def test_with_a_compiler_and_then_from_the_cache(model, cpu_compiler, tmp_path):
    given = embedding(model, "v5e:2x4")
    plan.run(given, tmp_path)
    (found,) = read(tmp_path)
    memory, work = found["memory"], found["work"]
    assert found["fits"] is True and len(cpu_compiler) == 1
    arguments = memory["weights"] + memory["optimizer"] + memory["inputs"]
    assert memory["peak"] >= arguments and memory["temporaries"] > 0
    assert sum(work["ici"].values()) > 0 and work["hbm"] > 0
    best = found["estimate"]
    assert best["seconds"] == max(best["compute"], best["hbm"], best["ici"])
    text = (tmp_path / "plan.md").read_text()
    assert "| yes |" in text

    # What moves most has a source line of the package, each layer's and chunk's run counted
    assert 1 < len(work["readers_and_writers"]) <= 10 and work["collectives"]
    gather = work["collectives"][0]
    assert gather["source"].startswith("models/") and gather["runs"] >= 1
    assert max(each["runs"] for each in work["readers_and_writers"]) > 1
    assert sum(each["sent"] for each in work["collectives"]) <= sum(work["ici"].values())
    assert "## embed on v5e:2x4" in text and f"| {gather['source']} |" in text

    plan.run(given, tmp_path)  # the same plan: nothing is compiled, or even opened
    assert read(tmp_path) == [found] and len(cpu_compiler) == 1
    given.run.prefix = "another plan of the same program"
    plan.run(given, tmp_path)
    assert read(tmp_path)[0]["memory"] == memory and len(cpu_compiler) == 2
    assert len(list(tmp_path.glob("cache/*.hlo.gz"))) == 1


def test_a_slice_that_is_too_small_and_what_would_fit(
    given, proportional_compiler, with_hbm, tmp_path
):
    """Chunks of 8 rows fit: by proportion those of 16 should not, and are not tried."""
    given.run.chunk_size = 32
    (planned,) = plan.read(given.to_dict())
    large = plan.Recipe(planned, tmp_path).attempt("v5e:2x4", planned.run)
    assert large.memory.fits
    with_hbm(large.memory.peak - 17000)
    plan.run(given, tmp_path)
    (small,) = read(tmp_path)
    assert small["fits"] is False and small["memory"]["peak"] == large.memory.peak
    assert re.match(r"fits with --config.chunk_size=8: [\d.]+ GB a chip", small["suggestion"])
    assert [p.shapes.chunk_size for p in proportional_compiler] == [32, 32, 8]
    text = (tmp_path / "plan.md").read_text()
    assert "at chunk_size 32: the slice is too small" in text and "| no |" in text


def test_a_slice_with_room_and_what_would_fill_it(given, proportional_compiler, with_hbm, tmp_path):
    """What layers keep is known without compiling: two plans are compiled, this and the change."""
    given.run.execution.remat = "full"
    plan.run(given, tmp_path)
    (full,) = read(tmp_path)
    assert full["fits"] is True and len(proportional_compiler) == 2
    assert full["suggestion"].startswith("has room for --config.execution.remat=none: ")
    assert f"instead of {full['estimate']['seconds']:.3g} by" in full["suggestion"]
    assert full["suggestion"] in (tmp_path / "plan.md").read_text()

    given.run.execution.remat = "none"
    (planned,) = plan.read(given.to_dict())
    draft = plan.Recipe(planned, tmp_path).attempt("v5e:2x4", planned.run, compiled=False)
    assert draft.compiler == "" and draft.memory.peak is None and len(proportional_compiler) == 2
    assert draft.memory.activations > full["memory"]["activations"]
    assert draft.estimate.seconds < full["estimate"]["seconds"]


def test_a_plan_of_which_nothing_could_be_made_fails(given, no_compiler, tmp_path):
    given.topologies = ("v5e:4x4", "v5e:4x8")
    with pytest.raises(RuntimeError, match="(?s)not one of 2 plans.*on v5e:4x4: .*on v5e:4x8: "):
        plan.run(given, tmp_path)
    assert len(read(tmp_path)) == 2 and "multiple of 16" in (tmp_path / "plan.md").read_text()


def test_an_embed_job_in_int8_holds_half_of_the_weights(model, no_compiler, tmp_path):
    given = embedding(model, "v5e:1x1")
    held = {}
    for dtype in ("bfloat16", "int8"):
        given.run.dtype = dtype
        plan.run(given, tmp_path / dtype)
        held[dtype] = read(tmp_path / dtype)[0]["memory"]["weights"]
    assert held["bfloat16"] / 2 < held["int8"] < 0.9 * held["bfloat16"]


def test_wrong_names_are_said_before_anything_is_compiled(given, cpu_compiler, tmp_path):
    given.topologies = ("v5e:2x4", "v5e:8")
    with pytest.raises(ValueError, match="slices of TPU v5e have 2 sides"):
        plan.run(given, tmp_path)
    assert not cpu_compiler


def test_the_compiler_is_asked_for_by_name(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(compiler.importlib.metadata, "version", missing)
    with pytest.raises(compiler.NoCompilerError, match=r'pip install "jax\[tpu\]"'):
        compiler.devices(chips.parse("v5e:2x2"))

    # Refusals say how much was wanted
    for message in (
        "RESOURCE_EXHAUSTED: Ran out of memory. Used 34.25G of 15.75G hbm. Exceeded by 18.5G.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (34.25G) exceeds available HBM (15.75G).",
    ):
        assert compiler._refused_bytes(message) == round(34.25 * 2**30)
    assert compiler._refused_bytes("INTERNAL: something else") is None


@pytest.fixture
def libtpu():
    pytest.importorskip("libtpu")


@for_each("slice_name", ["v5e:1x1", "v6e:1x1", "v5p:2x2x1"])
def test_libtpu_states_the_limit_that_we_have_of_a_chip(libtpu, slice_name):
    where = chips.parse(slice_name)
    sharding = jax.sharding.SingleDeviceSharding(compiler.devices(where)[0])
    needed = 2**37  # 128 GiB, more than any of them has
    large = jax.ShapeDtypeStruct((needed // 2**12, 2**10), jnp.float32, sharding=sharding)
    with pytest.raises(jax.errors.JaxRuntimeError) as refused:
        jax.jit(jnp.sum).lower(large).compile()
    assert compiler._refused_bytes(str(refused.value)) == pytest.approx(needed, rel=0.01)
    assert f"({where.chip.hbm / 2**30:.2f}G)" in str(refused.value)


def test_the_hub_is_not_asked_for_weights(model, no_compiler, tmp_path, monkeypatch):
    asked = []

    def download(hub_id, *, revision, token, allow_patterns):
        asked.append((hub_id, tuple(allow_patterns)))
        return model

    monkeypatch.setattr(model_folders, "snapshot_download", download)
    model_folders.download.cache_clear()
    given = embedding("", "v5e:1x1")
    given.run.backbone = "someone/model"
    plan.run(given, tmp_path)
    model_folders.download.cache_clear()
    ((hub_id, patterns),) = asked
    assert hub_id == "someone/model" and "*.json" in patterns
    assert not any("safetensors" in pattern for pattern in patterns)
    assert read(tmp_path)[0]["stand_in"] == ""


def test_committed_recipes_are_configs_of_known_slices():
    """Every model has its shapes in the repository, and open buckets a sample of lengths."""
    for planned in plan.read(plans.get_config().to_dict()):
        assert planned.topologies and all(map(chips.parse, planned.topologies)), planned.name
        backbones.open_backbone(planned.model, max_length=64)
    for expected in plans.EXPECTED.values():
        if "lengths" in expected:
            sizes, example = length_sample.read(expected["lengths"])
            assert example.max() == 255 and sizes.min(axis=0)[0] > 3

    # Without, a plan says what it needs
    planned = plans.get_config("unime_v2:qwen2_vl_7b")
    with pytest.raises(ValueError, match="config.run.data.buckets. Name buckets, or in config.len"):
        plan.read(planned.to_dict())


@pytest.mark.slow
def test_a_tiny_step_compiles_for_a_real_slice(given, tmp_path):
    pytest.importorskip("libtpu")
    given.topologies = ("v5e:2x4", "v5e:1x1")
    plan.run(given, tmp_path)
    with pytest.raises(ValueError, match="libtpu gives no slice v5e:3x3"):
        compiler.devices(chips.parse("v5e:3x3"))
    for found in read(tmp_path):
        assert found["fits"] and "libtpu" in found["compiler"] and found["work"]["hbm"] > 0
        assert bool(found["work"]["ici"]) == (found["chips"] > 1)


@pytest.mark.slow
def test_a_real_slice_that_is_too_small(given, tmp_path):
    """libtpu refuses, we understand by how much, and what is suggested was compiled."""
    pytest.importorskip("libtpu")
    given.topologies = ("v5e:1x1",)
    given.run.mesh.fsdp = 1
    given.run.batch_size = given.run.chunk_size = 512
    # The attention weights of 512 rows alone are 17 GB.
    given.run.data.buckets = (Bucket(tokens=2048, tiles=0),)
    plan.run(given, tmp_path)
    (found,) = read(tmp_path)
    assert found["fits"] is False and found["problem"] == ""
    assert found["memory"]["peak"] > found["memory"]["capacity"]
    assert re.match(r"fits with --config.chunk_size=\d+: [\d.]+ GB a chip", found["suggestion"])
