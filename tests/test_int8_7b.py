"""The 7B steps on an int8 base at full size: they trace, and one compiles for a single chip."""

import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from experiments import stage1, stage2
from tests.test_aot import SIZES
from unime_jax import backbones, config, optimizer, sharding, state, step
from unime_jax.batch import Batch
from unime_jax.data.pack import fill_buckets
from unime_jax.data.plan import Bucket, pair_plan
from unime_jax.models.vlm import Execution

TEACHER = 4096  # NV-Embed-v2's width
HBM = 16e9  # bytes of one TPU v5e chip


CASES = [  # those that nightly runs take, too, are slow
    pytest.param(module, name, id=f"{module.__name__.rpartition('.')[2]}-{name}", marks=marks)
    for module in (stage1, stage2)
    for name in SIZES
    for marks in ([] if (module, name) == (stage2, "qwen2_vl_7b") else [pytest.mark.slow],)
]


def draw(experiment, variant, folder, devices, *, chunk_size):
    """The step of an experiment's variant and abstract arguments for it on these devices."""
    changed = experiment.get_config(variant)
    changed.execution.frozen_dtype = "int8"
    changed.chunk_size = chunk_size
    settings = config.read(config.TrainConfig, changed.to_dict())
    mesh = sharding.make_mesh(1, len(devices), 1, devices)
    buckets = [Bucket(*bucket) for bucket in settings.data.buckets]
    backbone = backbones.open_backbone(
        str(folder), max_length=buckets[-1].tokens, processing=settings.processing
    )
    if settings.data.teacher:
        backbone = backbones.language_only(backbone, TEACHER)
    blueprint = state.draw(
        backbone,
        mesh,
        adapters=settings.lora,
        trainable=settings.trainable,
        frozen_dtype=jnp.dtype(settings.execution.frozen_dtype),
    )
    optimize = optimizer.make_optimizer(settings.optimizer, settings.steps, blueprint.trainable)
    run = step.make_train_step(
        step.make_encode(blueprint.graph, Execution(jnp.dtype("bfloat16"), "full", "xla")),
        optimize,
        optimizer.make_schedule(settings.optimizer, settings.steps),
        settings.loss,
        recompute=True,
    )
    plan = pair_plan(
        buckets,
        backbone.layout,
        batch_size=settings.batch_size,
        negatives=settings.data.negatives,
        chunk_size=settings.chunk_size,
    )
    rows, pairs = sharding.chunked_rows(mesh), NamedSharding(mesh, jax.P(sharding.ROWS))

    def shaped(shape, dtype, where=rows):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    groups, _ = fill_buckets([], plan)  # zeros that are never touched cost no memory
    pair = shaped((settings.batch_size,), jnp.int32, pairs)
    batch = Batch(
        groups=jax.tree.map(lambda x: shaped(x.shape, x.dtype), groups),
        query=pair,
        positive=pair,
        negative=shaped((settings.batch_size, plan.negatives), jnp.int32, pairs),
        target_id=tuple(shaped(group.length.shape, np.uint32) for group in groups),
        source=pair,
    )
    now = state.abstract_state(blueprint, optimize, mesh)
    out = (jax.tree.map(lambda x: x.sharding, now), sharding.replicated(mesh))
    return mesh, jax.jit(run, donate_argnums=0, out_shardings=out), now, batch


def size(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("experiment, variant", CASES)
def test_the_7b_step_traces_on_an_int8_base(tmp_path, experiment, variant):
    """All that is frozen takes little more than a byte a parameter, embeddings aside."""
    folder = SIZES[variant][0](tmp_path)
    mesh, run, now, batch = draw(experiment, variant, folder, jax.devices(), chunk_size=32)
    codes = {path for path, x in now.frozen.items() if x.dtype == jnp.int8}
    assert {path.rpartition(".")[2] for path in codes} == {"kernel"}
    assert not any(path.endswith(".kernel") for path in now.frozen.keys() - codes)
    count = sum(x.size for x in now.frozen.values())
    embeddings = now.frozen["language_model.embed_tokens.embedding"].size
    assert size(now.frozen) < 1.01 * (count + embeddings)
    with jax.set_mesh(mesh):
        new, metrics = jax.eval_shape(run, now, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), now
    )
    assert metrics["loss"].shape == ()


@pytest.mark.slow
def test_the_7b_step_compiles_for_one_tpu_v5e_chip(tmp_path):
    """LLaVA-OneVision-7B with DoRA and 1024 pairs, a row of the longest bucket at a time."""
    pytest.importorskip("libtpu")
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    folder = SIZES["llava_onevision_7b"][0](tmp_path)
    mesh, run, now, batch = draw(
        stage2, "llava_onevision_7b", folder, topology.devices[:1], chunk_size=1
    )
    with jax.set_mesh(mesh):
        compiled = run.lower(now, batch).compile()
    memory = compiled.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    assert used + memory.output_size_in_bytes - memory.alias_size_in_bytes < HBM
    # The matmuls read codes: there is no float copy of a kernel, not even of one layer.
    assert not re.findall(r"(?:bf16|f32)\[(?:3584,18944|18944,3584)", compiled.as_text())
