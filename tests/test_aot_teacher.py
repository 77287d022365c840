"""NV-Embed-v2 at full size, without weights or TPU: it traces, and libtpu compiles it."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from tests.backbones.tiny_texts import MISTRAL, write_nv_embed
from tests.tables import for_each
from unime_jax import backbones, sharding
from unime_jax.data.shapes import BatchShapes, Bucket
from unime_jax.planning import chips, compiler
from unime_jax.planning.program import Program, embed_program

# What the published config.json leaves out are the defaults of Mistral and of latent attention.
TEXT = dict(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=32000,
)
PARAMETERS = 7.85e9
CHUNK, TOKENS, CHUNKS = 256, 512, 4
MOST = 5e9  # bytes of a chip that has 16e9


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = write_nv_embed(tmp_path_factory.mktemp("7b"), text=TEXT, latents={})
    return backbones.open_backbone(str(folder), max_length=TOKENS)


def draw(backbone, mesh, chunk=CHUNK, tokens=TOKENS) -> Program:
    """The program that encodes a window of rows in bfloat16, as the planner has it."""
    shapes = BatchShapes((Bucket(tokens, 0),), backbone.layout, chunk, chunk * CHUNKS)
    return embed_program(backbone, mesh, shapes, jnp.dtype("bfloat16"))


def test_the_7b_teacher_traces(backbone):
    """Shapes, rules and shardings fit at full size; nothing is allocated."""
    mesh = sharding.make_mesh(1, 4, 2)
    program = draw(backbone, mesh)
    size = sum(x.size for x in program.parameters[1].values())
    assert PARAMETERS - 1e7 < size < PARAMETERS + 1e7
    (embeddings,) = jax.eval_shape(program.run, *program.arguments)
    assert embeddings.shape == (CHUNK * CHUNKS, 4096) and embeddings.dtype == jnp.float32
    assert program.groups[0].patches is None


@for_each("mesh", [(1, 8, 1), (2, 4, 1), (1, 4, 2), (2, 2, 2), (1, 1, 8)])
def test_every_matrix_of_it_is_sharded(backbone, mesh):
    """Over fsdp and tensor both; what is whole on every device are norms, biases and latents."""
    data, fsdp, tensor = mesh
    parameters = draw(backbone, sharding.make_mesh(*mesh)).parameters[1]
    for path, x in parameters.items():
        share = x.sharding.shard_shape(x.shape)
        parts = x.size // math.prod(share)
        whole = path.rpartition(".")[2] not in ("kernel", "embedding")
        assert parts == (1 if whole else fsdp * tensor), path
    for layer in ("to_q", "to_k", "to_v"):
        path = f"latent_attention_model.cross_attention.{layer}.kernel"
        assert parameters[path].sharding.spec == jax.P("fsdp", "tensor")
    path = "latent_attention_model.feed_forward.down.kernel"
    assert parameters[path].sharding.spec == jax.P("tensor", "fsdp")


def test_rows_stay_on_their_devices(tmp_path):
    """Of activations a device has its own rows, though weights lie over the same mesh axis."""
    backbone = backbones.open_backbone(str(write_nv_embed(tmp_path)), max_length=TOKENS)
    for shape in ((1, 8, 1), (2, 2, 2)):
        mesh = sharding.make_mesh(*shape)
        program = draw(backbone, mesh, chunk=40, tokens=56)
        with jax.set_mesh(mesh):
            text = program.run.lower(*program.arguments).compile().as_text()
        found = re.findall(r"= \w+\[(\d+),56,(\d+)\]", text)
        # Less than the model's width are parts of embeddings, looked up in parts of their table.
        rows = {int(rows) for rows, features in found if int(features) >= MISTRAL["hidden_size"]}
        assert rows == {40 // sharding.row_shards(mesh)}, shape


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 16, 1), (1, 4, 4)])
def test_the_7b_teacher_compiles_for_tpu_v5e_4x4(backbone, shape, tmp_path):
    """256 texts of 512 tokens at a time, on 16 chips, each a third full at most."""
    pytest.importorskip("libtpu")
    where = chips.parse("v5e:4x4")
    program = draw(backbone, sharding.make_mesh(*shape, compiler.devices(where)))
    assert compiler.compile_program(program, where, tmp_path).peak < MOST
