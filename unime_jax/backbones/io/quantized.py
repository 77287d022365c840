"""Linear layers of a checkpoint, read as int8 codes with one scale per output channel.

A scale is that of a whole column, so a process reads whole layers, whatever its part of the codes.
In memory are a few rows of the file's layers, and this process's part of one parameter.
"""

import concurrent.futures
from collections.abc import Callable

import jax
import numpy as np

from unime_jax.backbones.io.names import STRIP, Entry, Rows
from unime_jax.models.quantization import quantize_rows


def read(
    matrix: Callable[[str], Rows],
    entry: Entry,
    target: jax.ShapeDtypeStruct,
    scale_target: jax.ShapeDtypeStruct,
    pool: concurrent.futures.Executor,
) -> tuple[jax.Array, jax.Array]:
    """int8 codes and scales of one parameter, bitwise the same for every sharding.

    Args:
      matrix: a lazy view of a tensor of the file, [out, in].
    """
    places = target.sharding.addressable_devices_indices_map(target.shape)
    parts = {str(index): index for index in places.values()}  # devices may share one
    shards = {
        key: np.empty([len(range(n)[cut]) for n, cut in zip(target.shape, index)], np.int8)
        for key, index in parts.items()
    }
    scale = np.empty(scale_target.shape, np.float32)
    outputs = target.shape[-1]

    def fill(layer: int, name: str) -> None:
        rows = matrix(name)
        # Blocks of as many bytes of every target row as are written at once (names.STRIP). They
        # are the same for all shards: a merged adapter is a product, which another cut may round
        # in another way.
        for start in range(0, outputs, STRIP):
            block = slice(start, min(start + STRIP, outputs))
            codes, found = quantize_rows(np.asarray(rows[entry.within(block)]))
            (scale[layer] if entry.stacked else scale)[block] = found
            for key, (*stack, inputs, own) in parts.items():
                shard = shards[key]
                if stack:
                    held = range(target.shape[0])[stack[0]]
                    if layer not in held:
                        continue
                    shard = shard[layer - held.start]
                first, end, _ = own.indices(outputs)
                lower, upper = max(block.start, first), min(block.stop, end)
                if lower < upper:
                    part = codes[lower - start : upper - start, inputs]
                    shard[:, lower - first : upper - first] = part.T

    for _ in pool.map(fill, range(len(entry.names)), entry.names):
        pass  # raises what `fill` raised
    arrays = [jax.device_put(shards[str(index)], device) for device, index in places.items()]
    return (
        jax.make_array_from_single_device_arrays(target.shape, target.sharding, arrays),
        jax.make_array_from_callback(scale.shape, scale_target.sharding, lambda i: scale[i]),
    )
