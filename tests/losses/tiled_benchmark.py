"""Memory and time of the loss in column blocks; no test, run by hand.

    python -m tests.losses.tiled_benchmark [--devices=8] [--dimension=256 --block=1024]

Memory: XLA's temporaries of loss and gradient, a device, beside those of the dense loss, on a mesh
of virtual CPU devices; compiled only. Time: loss and gradient beside the same blocks' matrix
products alone, forward and backward, in one process: calls of both take turns,
and the least of each counts. Where the machine does other work, the ratio of CPU times is the one
to read.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from unime_jax import sharding
from unime_jax.losses import contrastive, ring

OPTIONS = {
    "plain": {},
    "unime": {"hard_negatives": 8, "false_negative_margin": 0.1},
    "llave": {"hardness": 9.0, "symmetric": True},
    "unime, symmetric": {"hard_negatives": 8, "false_negative_margin": 0.1, "symmetric": True},
}


def loss_and_gradient(options: dict, column_block: int | None):
    """Of queries and candidates, both [B, D]."""

    def loss(queries, candidates):
        return contrastive(queries, candidates, **options, column_block=column_block)[0]

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def matmuls(options: dict, column_block: int, shards: int):
    """Products of the same blocks of [B, D] and [B, D], each device with its own as often.

    Scores forth, and back the scores again and two products with an array of their shape; the
    hardest need no scores on the way back.
    """
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    again = options.get("hard_negatives") is None

    def one_direction(queries, candidates):
        blocks = candidates.reshape(-1, column_block, candidates.shape[1])

        def forth(_, part):
            return product("bd,md->bm", queries, part), None

        def back(d_rows, part):
            scores = product("bd,md->bm", queries, part)
            return d_rows + product("bm,md->bd", scores, part), product(
                "bm,bd->md", scores, queries
            )

        def hop(carry, number):
            scores, d_rows, _ = carry
            others = blocks + 1e-3 * number  # never the same, or XLA takes products out of the loop
            if again:
                scores = jax.lax.scan(forth, scores, others)[0]
            d_rows, d_columns = jax.lax.scan(back, d_rows, others)
            return (scores, d_rows, d_columns), None

        none = ring.vary(jnp.zeros((queries.shape[0], column_block)))
        zeros = ring.vary(jnp.zeros(queries.shape)), ring.vary(jnp.zeros(blocks.shape))
        return jax.lax.scan(hop, (none, *zeros), jnp.arange(shards))[0]

    def both(queries, candidates):
        results = [one_direction(queries, candidates)]
        if options.get("symmetric"):
            results.append(one_direction(candidates, queries))
        return results

    return jax.jit(lambda *arrays: ring.blockwise(both, *arrays))


def temporaries(mesh, pairs: int, dimension: int, options: dict, column_block: int | None) -> int:
    rows = NamedSharding(mesh, P(sharding.ROWS))
    x = jax.ShapeDtypeStruct((pairs, dimension), jnp.float32, sharding=rows)
    with jax.set_mesh(mesh):
        compiled = loss_and_gradient(options, column_block).lower(x, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def seconds(mesh, pairs: int, dimension: int, options: dict, column_block: int, repeats: int):
    """The least of the loss's and of the products' calls: [of the clock, of the CPUs] each."""
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((2, pairs, dimension), np.float32)
    arrays /= np.linalg.norm(arrays, axis=2, keepdims=True)
    placed = [jax.device_put(x, NamedSharding(mesh, P(sharding.ROWS))) for x in arrays]
    shards = sharding.row_shards(mesh)
    with jax.set_mesh(mesh):
        runs = [
            program.lower(*placed).compile()
            for program in (
                loss_and_gradient(options, column_block),
                matmuls(options, column_block, shards),
            )
        ]
        times = np.zeros((repeats + 1, 2, 2))
        for repeat in range(repeats + 1):  # the first warms up
            for number, run in enumerate(runs):
                begun = time.perf_counter(), time.process_time()
                jax.block_until_ready(run(*placed))
                ended = time.perf_counter(), time.process_time()
                times[repeat, number] = np.subtract(ended, begun)
    return times[1:].min(axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--block", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=65536, help="of the memory; 0: none")
    parser.add_argument("--timed", type=int, default=8192, help="pairs of the time; 0: none")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default=None, choices=OPTIONS)
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", arguments.devices)
    mesh = sharding.make_mesh(1, -1, 1)
    dimension, block = arguments.dimension, arguments.block
    what = f"D = {dimension}, column_block = {block}, {arguments.devices} devices"
    for name, options in OPTIONS.items():
        if arguments.only not in (None, name):
            continue
        if arguments.pairs:
            dense, tiled = (
                temporaries(mesh, arguments.pairs, dimension, options, columns)
                for columns in (None, block)
            )
            print(
                f"{name}: {arguments.pairs} pairs, {what}: temporaries {tiled / 2**20:.1f} MiB a"
                f" device, dense {dense / 2**20:.0f} MiB, 1/{dense / tiled:.0f}",
                flush=True,
            )
        if arguments.timed:
            loss, products = seconds(
                mesh, arguments.timed, dimension, options, block, arguments.repeats
            )
            print(
                f"{name}: {arguments.timed} pairs, {what}: {loss[0]:.2f} s, its products alone"
                f" {products[0]:.2f} s, ratio {loss[0] / products[0]:.2f}; of CPU time"
                f" {loss[1]:.2f} and {products[1]:.2f} s, ratio {loss[1] / products[1]:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
