"""Rows that processes of one mesh prepare each for itself: who prepares which, and their sizes.

Item n is prepared by part n % parts of the processes. Sizes go to all of them, so that all make
the same batches of them. The exchange is one more small computation in the devices' queue, and is
read one round later, when it is done.
"""

import collections
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unime_jax import sharding
from unime_jax.batch import Row


class RowSize(NamedTuple):
    """What all processes know of an item's row; neither tokens nor tiles: it is left out.

    `failed`: it could not be prepared. `truncated`: its text was cut. `unmatched_markers`: its
    text has image markers without an image. `clips`: its patches are of clips.
    """

    number: int
    tokens: int = 0
    tiles: int = 0
    truncated: bool = False
    unmatched_markers: bool = False
    failed: bool = False
    clips: bool = False


Prepared = tuple[RowSize, Row | Exception | None]  # None: another process has the row


def own_part(mesh: Mesh) -> tuple[int, int]:
    """The part of a batch's rows that this process holds, and the number of parts.

    Processes along the mesh's other axes hold the same rows.

    Raises:
      ValueError: two processes hold some of their rows in common.
    """
    holders: dict[int, set[int]] = {}
    for shard, devices in enumerate(mesh.devices.reshape(sharding.row_shards(mesh), -1)):
        for device in devices:
            holders.setdefault(device.process_index, set()).add(shard)
    held = {process: tuple(sorted(shards)) for process, shards in holders.items()}
    parts = sorted(set(held.values()))
    if len(parts) * len(parts[0]) != sharding.row_shards(mesh) or len(set(map(len, parts))) > 1:
        raise ValueError(
            f"row shards by process are {held}: two processes must hold the same rows, or none in"
            " common; make mesh.tensor divide the devices of a process, or be a multiple of them"
        )
    return parts.index(held[jax.process_index()]), len(parts)


def sizes_of_all(
    prepared: Iterator[Prepared], mesh: Mesh, *, total: int, each: int
) -> Iterator[Prepared]:
    """The sizes of all `total` items, in order, with the rows that this process has.

    Args:
      prepared: this process's items, in order.
      each: items of a process that are told the others at a time.
    """
    part, parts = own_part(mesh)
    if parts == 1:
        yield from prepared
        return
    told: collections.deque[tuple[dict[int, Prepared], jax.Array]] = collections.deque()
    for start in range(0, total, each * parts):
        count = len(range(start + part, min(start + each * parts, total), parts))
        mine = list(itertools.islice(prepared, count))
        told.append(({size.number: (size, row) for size, row in mine}, _tell(mine, mesh, each)))
        if len(told) > 1:
            yield from _merged(*told.popleft())
    while told:
        yield from _merged(*told.popleft())


def replicate(local: np.ndarray, spread: NamedSharding) -> jax.Array:
    """An array on all devices, of which each process has the part that `spread` gives it."""
    return _everywhere(spread.mesh)(sharding.to_global(local, spread))


def _tell(mine: Sequence[Prepared], mesh: Mesh, each: int) -> jax.Array:
    """Sizes int32 [row shards, each, fields] of all processes; number -1: there is none."""
    _, parts = own_part(mesh)
    fields = len(RowSize._fields)
    sizes = np.full((sharding.row_shards(mesh) // parts, each, fields), -1, np.int32)
    sizes[0, : len(mine)] = np.reshape([size for size, _ in mine], (-1, fields))
    return replicate(sizes, NamedSharding(mesh, P(sharding.ROWS)))


def _merged(mine: dict[int, Prepared], told: jax.Array) -> Iterator[Prepared]:
    """One round's items by number, each as its own process has it."""
    sizes = np.asarray(told).reshape(-1, len(RowSize._fields))
    for fields in sorted(sizes[sizes[:, 0] >= 0].tolist()):
        size = RowSize(*fields)
        yield mine.get(size.number, (size, None))


@functools.lru_cache(maxsize=8)
def _everywhere(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
