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
from unime_jax import backbones, config
from unime_jax.data.settings import Bucket
from unime_jax.jobs import plan
from unime_jax.planning import chips, compiler, memory, report, suggest


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture
def given(model):
    """A step of a tiny model on what has the size of a v5e:2x4."""
    planned = plans.get_config("stage2")
    planned.topologies, planned.model = ("v5e:2x4",), model
    run = planned.run
    run.batch_size, run.chunk_size = 16, 8
    run.mesh.data, run.mesh.fsdp = 1, -1
    run.data.buckets = (Bucket(tokens=16, tiles=0),)
    return planned


def embedding(model, *topologies):
    """The plan of an embedding job, which compiles in a second or two."""
    planned = plans.get_config("embed")
    planned.run.max_length, planned.model, planned.topologies = 64, model, topologies
    return planned


@pytest.fixture
def no_compiler(monkeypatch):
    def devices(where):
        raise compiler.NoCompilerError("libtpu is not installed.")

    monkeypatch.setattr(compiler, "devices", devices)


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


def test_without_a_compiler(given, no_compiler, tmp_path):
    """Arguments and FLOPs are exact, the rest is said to be unknown, and nothing is cached."""
    plan.run(given, tmp_path)
    (found,) = read(tmp_path)
    memory, work = found["memory"], found["work"]
    assert found["compiler"] == "" and found["fits"] is None and found["chips"] == 8
    assert memory["weights"] > 0 and memory["inputs"] > 0 and memory["peak"] is None
    assert memory["optimizer"] == pytest.approx(2 * memory["gradients"], rel=0.01)
    assert 0 < work["useful"] < work["executed"] and work["ici"] is None
    assert found["estimate"]["bound"] == "compute"
    assert found["settings"]["load"] == {"rows": [64], "tokens": [16]}
    text = (tmp_path / "plan.md").read_text()
    assert "WARNING: without libtpu nothing was compiled" in text
    assert report.NOTE in text and "has the shapes of" in text
    assert not list(tmp_path.glob("cache/*"))


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
    assert "| yes |" in (tmp_path / "plan.md").read_text()

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
    plan.run(given, tmp_path / "all")
    (found,) = read(tmp_path / "all")
    assert found["fits"] and found["suggestion"] == ""
    with_hbm(found["memory"]["peak"] - 17000)
    plan.run(given, tmp_path / "small")
    (found,) = read(tmp_path / "small")
    assert found["fits"] is False
    assert re.match(r"fits with --config.chunk_size=8: [\d.]+ GB a chip", found["suggestion"])
    text = (tmp_path / "small" / "plan.md").read_text()
    assert "at chunk_size 32: the slice is too small" in text and "| no |" in text

    with_hbm(1000)  # the weights alone are more
    given.run.execution.remat = "full"
    plan.run(given, tmp_path / "tiny")
    assert "nothing fits of 3 changes" in read(tmp_path / "tiny")[0]["suggestion"]
    given.run.execution.recompute = False
    plan.run(given, tmp_path / "kept")
    assert "nothing fits of 4 changes" in read(tmp_path / "kept")[0]["suggestion"]


def test_a_slice_with_room_and_what_would_fill_it(given, proportional_compiler, with_hbm, tmp_path):
    """What layers keep is known without compiling; what would not fit is not compiled."""
    given.run.execution.remat = "full"
    kept, seconds = {}, {}
    for remat in ("none", "dots", "full"):
        given.run.execution.remat = remat
        (planned,) = plan.read(given.to_dict())
        recipe = plan.Recipe(planned, tmp_path)
        draft = recipe.attempt("v5e:2x4", planned.run, compiled=False)
        assert draft.compiler == "" and draft.memory.peak is None
        kept[remat], seconds[remat] = draft.memory.activations, draft.estimate.seconds
    assert kept["none"] > kept["dots"] > kept["full"] and not proportional_compiler
    assert seconds["none"] < seconds["dots"] < seconds["full"]

    def suggested(name):
        proportional_compiler.clear()
        plan.run(given, tmp_path / name)
        return read(tmp_path / name)[0], len(proportional_compiler)

    found, compilations = suggested("much")
    peak = found["memory"]["peak"]
    assert compilations == 2 and found["fits"] is True
    assert found["suggestion"].startswith("has room for --config.execution.remat=none: ")
    assert f"instead of {found['estimate']['seconds']:.3g} by" in found["suggestion"]
    assert found["suggestion"] in (tmp_path / "much" / "plan.md").read_text()

    with_hbm((peak + kept["dots"] - kept["full"]) / suggest.FULL + 1)
    found, compilations = suggested("some")
    assert compilations == 2
    assert found["suggestion"].startswith("has room for --config.execution.remat=dots: ")

    with_hbm((peak + kept["dots"] - kept["full"]) / suggest.FULL - 2)
    found, compilations = suggested("little")
    assert compilations == 1 and found["fits"] is True and found["suggestion"] == ""


def test_a_batch_that_does_not_fit_the_slice_is_one_line_of_the_table(given, no_compiler, tmp_path):
    given.topologies = ("v5e:4x4", "v5e:2x4")
    plan.run(given, tmp_path)
    first, second = read(tmp_path)
    assert "config.chunk_size=8 must be a multiple of 16" in first["problem"]
    assert first["memory"] is None and first["fits"] is False
    assert second["problem"] == "" and second["memory"]


def test_a_plan_of_which_nothing_could_be_made_fails(given, no_compiler, tmp_path):
    given.topologies = ("v5e:4x4", "v5e:4x8")
    with pytest.raises(RuntimeError, match="(?s)not one of 2 plans.*on v5e:4x4: .*on v5e:4x8: "):
        plan.run(given, tmp_path)
    assert len(read(tmp_path)) == 2 and "multiple of 16" in (tmp_path / "plan.md").read_text()


def test_an_embed_job(model, no_compiler, tmp_path):
    given = embedding(model, "v5e:2x2")
    plan.run(given, tmp_path)
    (found,) = read(tmp_path)
    assert found["memory"]["optimizer"] == found["memory"]["gradients"] == 0
    assert found["hours"] is None and found["work"]["useful"] > 0


def test_an_embed_job_in_int8_holds_half_of_the_weights(model, no_compiler, tmp_path):
    given = embedding(model, "v5e:1x1")
    held = {}
    for dtype in ("bfloat16", "int8"):
        given.run.dtype = dtype
        plan.run(given, tmp_path / dtype)
        held[dtype] = read(tmp_path / dtype)[0]["memory"]["weights"]
    assert held["bfloat16"] / 2 < held["int8"] < 0.9 * held["bfloat16"]


def test_several_recipes_in_one_call(given, no_compiler, tmp_path):
    both = ConfigDict({"job": "plan", "recipes": {}})
    for name in ("one", "other"):
        both.recipes[name] = given.to_dict() | {"name": name}
    plan.run(both, tmp_path)
    assert [found["recipe"] for found in read(tmp_path)] == ["one", "other"]


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


def test_refusals_say_how_much_was_wanted():
    for message in (
        "RESOURCE_EXHAUSTED: Ran out of memory. Used 34.25G of 15.75G hbm. Exceeded by 18.5G.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (34.25G) exceeds available HBM (15.75G).",
    ):
        assert compiler._refused_bytes(message) == round(34.25 * 2**30)
    assert compiler._refused_bytes("INTERNAL: something else") is None


@pytest.mark.parametrize("slice_name", ["v5e:1x1", "v6e:1x1", "v5p:2x2x1"])
def test_libtpu_states_the_limit_that_we_have_of_a_chip(slice_name):
    pytest.importorskip("libtpu")
    where = chips.parse(slice_name)
    sharding = jax.sharding.SingleDeviceSharding(compiler.devices(where)[0])
    needed = 2**37  # 128 GiB, more than any of them has
    large = jax.ShapeDtypeStruct((needed // 2**12, 2**10), jnp.float32, sharding=sharding)
    with pytest.raises(jax.errors.JaxRuntimeError) as refused:
        jax.jit(jnp.sum).lower(large).compile()
    assert compiler._refused_bytes(str(refused.value)) == pytest.approx(needed, rel=0.01)
    assert f"({where.chip.hbm / 2**30:.2f}G)" in str(refused.value)


def test_json_there_and_back(given, no_compiler, tmp_path):
    plan.run(given, tmp_path)
    (found,) = read(tmp_path)
    entry = report.entry_from_json(found)
    assert isinstance(entry.memory, memory.Memory)
    assert report.entry_to_json(entry) == found


def test_the_hub_is_not_asked_for_weights(model, given, no_compiler, tmp_path, monkeypatch):
    asked = []

    def download(hub_id, *, revision, allow_patterns):
        asked.append((hub_id, tuple(allow_patterns)))
        return model

    monkeypatch.setattr(backbones, "snapshot_download", download)
    backbones._download.cache_clear()
    given.run.backbone, given.model = "someone/model", ""
    plan.run(given, tmp_path)
    backbones._download.cache_clear()
    ((hub_id, patterns),) = asked
    assert hub_id == "someone/model" and "*.json" in patterns
    assert not any("safetensors" in pattern for pattern in patterns)
    assert read(tmp_path)[0]["stand_in"] == ""


def test_committed_recipes_are_configs_of_known_slices():
    """Every model has its shapes in the repository, and every load fits its buckets."""
    for planned in plan.read(plans.get_config().to_dict()):
        assert planned.topologies, planned.name
        for topology in planned.topologies:
            where = chips.parse(topology)
            if isinstance(planned.run, config.TrainConfig):
                assert planned.run.chunk_size % where.chips == 0, (planned.name, topology)
        backbones.open_backbone(planned.model, max_length=64)


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
