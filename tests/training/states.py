"""Training states of noise, on any mesh, and their checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from unime_jax import sharding
from unime_jax.training.checkpoint import Checkpoints
from unime_jax.training.step import TrainState
from unime_jax.training.temperature import Temperature

FINGERPRINTS = {"backbone": "abc", "data": {"a": 3}}


def mesh_of(data=1, fsdp=4, tensor=2):
    return sharding.make_mesh(data, fsdp, tensor, jax.devices()[: data * fsdp * tensor])


def make_state(step, mesh=None, size=64):
    """Noise and counters, others for every step, spread over the mesh."""
    mesh = mesh or mesh_of()
    random = np.random.default_rng(step)

    def place(array, *spec):
        return jax.device_put(array, NamedSharding(mesh, P(*spec)))

    def part():
        return {
            "kernel": place(random.normal(size=(3, size, 16)).astype("f4"), None, "fsdp", "tensor"),
            "bias": place(random.normal(size=5).astype("f4")),
        }

    counters = [place(np.int32(n)) for n in (step, 100 + step, 200 + step)]
    opt_state = {
        "count": place(np.int32(step)),
        "mu": part(),
        "half": place(jnp.ones(7, "bfloat16")),
    }
    frozen = {"frozen": place(np.zeros(4, "f4"))}
    learned = Temperature(place(np.float32(step)), {"count": place(np.int32(step))})
    return TrainState(counters[0], part(), frozen, opt_state, counters[1], counters[2], learned)


def open_checkpoints(folder, keep=3, fingerprints=FINGERPRINTS, **options):
    return Checkpoints(folder, every=2, keep=keep, fingerprints=fingerprints, **options)


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def steps(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
