"""Loading a model of 2B parameters: how much memory beside its arrays, and how fast."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap
import zlib

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.backbones.tiny_qwen import write_qwen2_vl
from unime_jax import backbones, paths
from unime_jax.backbones.io import merging, tensor_files
from unime_jax.backbones.io.names import table

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TEXT = dict(  # Qwen2-VL-2B's
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    vocab_size=151936,
)
VISION = dict(embed_dim=1280, depth=32, num_heads=16, mlp_ratio=4)
SCRIPT = """
    import json, pathlib, re, sys, time
    import jax, jax.numpy as jnp
    from unime_jax import backbones, sharding
    from unime_jax.models import inference

    backbone = backbones.open_backbone(sys.argv[1], max_length=512)
    mesh = sharding.make_mesh(*map(int, sys.argv[2].split(",")))
    _, targets = inference.targets(backbone.make_model, mesh, jnp.dtype(sys.argv[3]))
    jax.block_until_ready(jnp.zeros(3))

    def peak():  # getrusage would count what the parent process held, too
        status = pathlib.Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024

    before, start = peak(), time.perf_counter()
    parameters = backbone.load(targets)
    seconds = time.perf_counter() - start
    beside = peak() - before
    held = sum(s.data.nbytes for x in parameters.values() for s in x.addressable_shards)
    model = sum(x.nbytes for x in parameters.values())  # what devices hold twice counts once
    up = "language_model.layers.mlp.up_proj.kernel"
    kernel = parameters[up][3, :5, 7].astype(jnp.float32)
    if sys.argv[3] == "int8":
        kernel *= parameters[up + "_scale"][3, 7]
    print(json.dumps({
        "beside": beside - held, "arrays": held, "model": model, "seconds": seconds,
        "kernel": kernel.tolist(),
    }))
"""


def write_model(folder: pathlib.Path) -> backbones.Backbone:
    """A Qwen2-VL-2B of noise in bfloat16, in shards of about 1 GB, of which one is in memory."""
    write_qwen2_vl(
        folder, patch=14, min_pixels=3136, max_pixels=12845056, mrope_section=(16, 24, 24),
        vision=VISION, text=TEXT,
    )  # fmt: skip
    backbone = backbones.open_backbone(str(folder), max_length=512)
    _, shapes = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    entries = table({path: x.shape for path, x in shapes.items()}, backbone.names)
    shards: list[dict[str, np.ndarray]] = [{}]
    weight_map = {}

    def flush():
        save_file(shards[0], folder / f"part-{len(set(weight_map.values()))}.safetensors")
        weight_map.update(
            dict.fromkeys(shards[0], f"part-{len(set(weight_map.values()))}.safetensors")
        )
        shards[0] = {}

    for entry in entries:
        for name in entry.names:
            shards[0][name] = noise(name, entry.shape)
            if sum(x.nbytes for x in shards[0].values()) > 1e9:
                flush()
    flush()
    (folder / tensor_files.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return backbone


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Cheap, but another one for every name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return np.resize((rng.normal(size=99991) * 0.02).astype(BFLOAT16), shape)


def write_dora(folder: pathlib.Path, backbone: backbones.Backbone, rank: int = 16) -> None:
    """A DoRA of all linear layers of the decoder."""
    _, shapes = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    tensors = {}
    for entry in table({path: x.shape for path, x in shapes.items()}, backbone.names):
        if entry.stacked and entry.transposed and entry.path.startswith("language_model."):
            for name in entry.names:
                stem = merging.PREFIX + backbone.names.module(name)
                tensors[f"{stem}.lora_A.weight"] = noise(stem + "A", (rank, entry.shape[1]))
                tensors[f"{stem}.lora_B.weight"] = noise(stem + "B", (entry.shape[0], rank))
                tensors[f"{stem}.lora_magnitude_vector"] = noise(stem, entry.shape[:1])
    folder.mkdir()
    save_file(tensors, folder / merging.WEIGHTS)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 64, "use_dora": True}
    config["base_model_name_or_path"] = str(backbone.folder)
    (folder / merging.CONFIG).write_text(json.dumps(config))


def measure(folder: pathlib.Path, mesh: str, dtype: str) -> dict:
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), mesh, dtype],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_loading_a_2b_model(tmp_path):
    """Beside the arrays, there is less memory in use than the largest tensor takes.

    In bfloat16, and in int8 of the same files, whose float kernels are then nowhere.
    """
    backbone = write_model(tmp_path / "base")
    write_dora(tmp_path / "dora", backbone)
    size = sum(file.stat().st_size for file in (tmp_path / "base").glob("*.safetensors"))
    assert size > 4e9
    largest = TEXT["vocab_size"] * TEXT["hidden_size"] * BFLOAT16.itemsize
    report = []
    for folder, mesh, dtype in (
        ("base", "1,8,1", "bfloat16"),
        ("base", "1,2,4", "bfloat16"),
        ("dora", "1,2,4", "bfloat16"),
        ("base", "1,8,1", "int8"),
        ("dora", "1,2,4", "int8"),
    ):
        found = measure(tmp_path / folder, mesh, dtype)
        report.append(
            f"{folder} in {dtype} on {mesh}: {found['arrays'] / 1e9:.2f} GB of arrays, "
            f"{found['beside'] / 1e6:.0f} MB beside them, {found['seconds']:.1f} s, "
            f"{size / found['seconds'] / 1e9:.2f} GB/s"
        )
        assert found["model"] > 4e9 if dtype == "bfloat16" else 2e9 < found["model"] < 2.8e9
        assert found["beside"] < largest, report
        if folder == "base":
            up = noise("model.layers.3.mlp.up_proj.weight", (8960, 1536))
            bound = 0 if dtype == "bfloat16" else np.abs(up[7].astype(np.float32)).max() / 253
            expected = up[7, :5].astype(np.float32)
            np.testing.assert_allclose(found["kernel"], expected, rtol=0, atol=bound)
    print("\n".join(report))  # pytest -s
