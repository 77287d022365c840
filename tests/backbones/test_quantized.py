"""int8 kernels read from checkpoints: those of the whole float kernels, on every mesh."""

import concurrent.futures
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.backbones.checkpoints import PAIRS, assert_same
from tests.backbones.test_merging import open_adapter, write_adapter
from tests.models.oracle import load
from tests.tables import every_value, for_each
from unime_jax import backbones, sharding
from unime_jax.backbones.io import quantized
from unime_jax.backbones.io.names import Entry
from unime_jax.models import inference, lora, quantization
from unime_jax.training import state

MESHES = ((1, 2, 1), (1, 4, 1), (1, 1, 4), (1, 8, 1), (2, 2, 2))
DORA = lora.LoraConfig(
    rank=2, alpha=4.0, dora=True, targets=((r"language_model\..*_proj", True), (".*", False))
)
ADAPTERS = ((r".*\.lora_.*", True), (".*", False))
FAMILIES = (*PAIRS, "llava_qwen", "phi3_v")


@pytest.fixture(scope="module")
def opened(folders):
    """A backbone of each family, by its model type."""
    return functools.cache(lambda name: backbones.open_backbone(str(folders(name)), max_length=512))


def make(backbone, mesh, init="pretrained"):
    mesh = sharding.make_mesh(*mesh, devices=jax.devices()[: np.prod(mesh)])
    abstract_model = state.abstract_model(
        backbone, mesh, adapters=DORA, trainable=ADAPTERS, frozen_dtype=jnp.dtype("int8")
    )
    found = state.make_parameters(backbone, abstract_model, adapters=DORA, init=init, seed=0)
    for path, target in abstract_model.parameters.items():
        x = found[path]
        assert (x.shape, x.dtype, x.sharding) == (target.shape, target.dtype, target.sharding)
    return found


def read(backbone, mesh):
    """As an Embedder does: all linear layers, no adapters."""
    mesh = sharding.make_mesh(*mesh, devices=jax.devices()[: np.prod(mesh)])
    return backbone.load(inference.targets(backbone.make_model, mesh, jnp.dtype("int8"))[1])


@pytest.fixture(scope="module")
def on_one_device(opened):
    """Parameters as an Embedder reads them, by model type."""
    return functools.cache(lambda model_type: read(opened(model_type), (1, 1, 1)))


# Between them they have every kind of tensor: stacked, fused, of a convolution, of two names.
QUICK = "llava_onevision", "qwen3_vl", "phi3_v"


@for_each("model_type", FAMILIES, quick=QUICK)
def test_codes_are_those_of_the_float_kernels(opened, on_one_device, model_type):
    """And all else is bfloat16. Of every linear layer: those of the tower, too."""
    exact, found = load(opened(model_type)), on_one_device(model_type)
    kernels = {path for path in exact if path.endswith(".kernel")}
    assert any(not path.startswith("language_model.") for path in kernels)
    quantised = jax.jit(lambda xs: jax.tree.map(quantization.quantize, xs))(
        {path: exact[path] for path in kernels}
    )
    for path, x in exact.items():
        if path not in kernels:
            np.testing.assert_array_equal(found[path], np.asarray(x).astype(jnp.bfloat16))
            continue
        codes, scale = quantised[path]
        np.testing.assert_array_equal(found[path], codes)
        np.testing.assert_array_equal(found[f"{path}_scale"], scale)
    scales = {path for path in found if path.endswith("_scale")}
    assert scales == {f"{path}_scale" for path in kernels}


@for_each("model_type, mesh", itertools.product(FAMILIES, MESHES), quick=every_value(QUICK, MESHES))
def test_codes_are_the_same_bits_on_every_mesh(opened, on_one_device, model_type, mesh):
    assert_same(read(opened(model_type), mesh), on_one_device(model_type))


@for_each("model_type", FAMILIES)
@pytest.mark.slow
def test_parameters_are_the_same_bits_on_every_mesh(opened, model_type):
    """Codes, scales, and DoRA's magnitudes; again when they are read again, as on resuming."""
    backbone = opened(model_type)
    expected = make(backbone, (1, 1, 1))
    for mesh in ((1, 1, 1), *MESHES):
        assert_same(make(backbone, mesh), expected)


@for_each("model_type", FAMILIES)
@pytest.mark.slow
@for_each("mesh", [(1, 8, 1), (2, 2, 2)])
def test_random_ones_are_the_same_bits_on_every_mesh(opened, model_type, mesh):
    backbone = opened(model_type)
    assert_same(make(backbone, mesh, "random"), make(backbone, (1, 1, 1), "random"))


def test_a_merged_adapter_is_quantised_with_its_base(pairs, tmp_path):
    pair = pairs("llava_onevision")
    write_adapter(pair, tmp_path / "adapter", use_dora=True)
    backbone = open_adapter(tmp_path / "adapter")
    exact, found = load(backbone), read(backbone, (1, 1, 1))
    path = "language_model.layers.self_attn.q_proj.kernel"
    scale = found[f"{path}_scale"]
    error = np.abs(quantization.dequantize(found[path], scale) - exact[path])
    assert np.all(error <= scale[:, None] * 0.5001)
    assert not np.array_equal(found[path], read(pair.backbone, (1, 1, 1))[path])
    for mesh in ((1, 4, 1), (2, 2, 2)):
        assert_same(read(backbone, mesh), found)


@for_each("stacked", [False, True])
@for_each("spec", [P(), P("fsdp", "tensor"), P("tensor", "fsdp")])
def test_layers_wider_than_a_block(stacked, spec):
    """Outputs beyond one block of rows, cut where blocks are not, and rows of a fused tensor."""
    tensors = {
        f"{i}": np.random.default_rng(i).normal(size=(720, 12)) for i in range(3 if stacked else 1)
    }
    rows = range(8, 712)  # 704 outputs: five blocks and a half
    mesh = sharding.make_mesh(1, 2, 4)
    shape, spec = (12, 704), P(*spec)
    if stacked:
        shape, spec = (3, *shape), P(None, *spec)
    scale_shape = (*shape[:-2], 704)
    entry = Entry("x.kernel", tuple(tensors), stacked, (720, 12), True, rows)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        codes, scale = quantized.read(
            tensors.__getitem__,
            entry,
            jax.ShapeDtypeStruct(shape, jnp.int8, sharding=NamedSharding(mesh, spec)),
            jax.ShapeDtypeStruct(scale_shape, jnp.float32, sharding=sharding.replicated(mesh)),
            pool,
        )
    assert codes.sharding.spec == spec
    kernel = np.stack([x[8:712].T for x in tensors.values()])
    expected = quantization.quantize(jnp.asarray(kernel if stacked else kernel[0], jnp.float32))
    np.testing.assert_array_equal(codes, expected[0])
    np.testing.assert_array_equal(scale, expected[1])
