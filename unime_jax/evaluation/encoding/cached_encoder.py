"""Encoder whose vectors are kept on disk: an item is known by its text and its images' content.

Paths will not do there, as a picture may be changed at its place. So images are read twice where
they are encoded, for their hash and by the encoder, and none is decoded for its hash.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import overload

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jaxtyping import Bool, Float32

from unime_jax.backbones.preprocessing.prompts import name_of
from unime_jax.batch import Item
from unime_jax.data.ahead import THREADS, map_ahead
from unime_jax.evaluation.encoding.vector_cache import VectorCache
from unime_jax.operations import watchdog

BLOCK = 4096  # items whose vectors are written at once: what a kill costs at most
HASHED = 32  # items that a thread reads and hashes at a time
UNREADABLE = bytes(32)  # in the place of an item's id

# Items and the size of a block -> vectors of one block of consecutive items after the other.
EncodeBlocks = Callable[[Sequence[Item], int], Iterator[Float32[np.ndarray, "m D"]]]


def item_id(item: Item) -> bytes:
    """32 hex digits: BLAKE2b (128 bit) of all that is said of an item, and of its images' content.

    Unlike `embedding_store.item_id` it has the instructions, too, which items of one evaluation
    need not share.
    """
    parts = [item.prefix, item.text, item.suffix, *(media.identity for media in item.media)]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest().encode()


class CachedEncoder:
    """An encode function that encodes an item only if its vector is not on disk.

    Of several processes the first reads and writes the cache, and tells the others what it has
    read, so that their disks need not be shared. All must make the same calls.
    """

    def __init__(self, encode: EncodeBlocks, cache: VectorCache | None, dimension: int):
        """`cache`: None in all processes but the first; `dimension`: D."""
        self._encode, self._cache, self._dimension = encode, cache, dimension

    def __call__(self, items: Sequence[Item]) -> Float32[np.ndarray, "n D"]:
        """Vectors of all items, in order.

        Raises:
          ValueError: what the encoder raises, or an image has changed since it was hashed.
        """
        ids = _ids(items)
        known, vectors = self._read(ids)
        first: dict[bytes | int, int] = {}  # numbers of the items that are encoded, by id
        copies: list[tuple[int, int]] = []  # numbers of items that are the same as such a one
        for number in np.flatnonzero(~known).tolist():
            id = number if ids[number] == UNREADABLE else ids[number]  # the encoder says why
            if first.setdefault(id, number) != number:
                copies.append((number, first[id]))
        new = list(first.values())
        if new:
            done = 0
            for block in self._encode(_Unchanged(items, new, ids), BLOCK):
                numbers = new[done : done + len(block)]
                vectors[numbers] = block
                if self._cache is not None:
                    kept = [number for number in numbers if ids[number] != UNREADABLE]
                    self._cache.add([ids[number] for number in kept], vectors[kept])
                done += len(block)
        for number, same in copies:
            vectors[number] = vectors[same]
        logging.info(
            "%d of %d items were known, %d encoded", np.count_nonzero(known), len(items), len(new)
        )
        return vectors

    def _read(
        self, ids: Sequence[bytes]
    ) -> tuple[Bool[np.ndarray, " n"], Float32[np.ndarray, "n D"]]:
        """As `VectorCache.read`, in all processes."""
        if self._cache is not None:
            known, vectors = self._cache.read(ids)
        else:
            known = np.zeros(len(ids), bool)
            vectors = np.zeros((len(ids), self._dimension), np.float32)
        if jax.process_count() > 1:
            known = np.asarray(multihost_utils.broadcast_one_to_all(known))
            numbers = np.flatnonzero(known)
            for start in range(0, len(numbers), BLOCK):
                part = numbers[start : start + BLOCK]
                vectors[part] = multihost_utils.broadcast_one_to_all(vectors[part])
        return known, vectors


def _ids(items: Sequence[Item]) -> list[bytes]:
    """Ids of all items, of which each process reads its part; `UNREADABLE`: it could not be read.

    An error is left to the encoder, which reads the item again: it says what is wrong, and all
    processes know of it.
    """
    part, parts = jax.process_index(), jax.process_count()
    each = -(-len(items) // parts)

    def hashed(numbers: range) -> list[bytes]:
        return [_id(items, number) for number in numbers]

    own = range(part, len(items), parts)
    pieces = [own[start : start + HASHED] for start in range(0, len(own), HASHED)]
    ids: list[bytes] = []
    for piece in map_ahead(hashed, pieces, ahead=2 * THREADS):
        ids += piece
        watchdog.progress()
    if parts == 1:
        return ids
    mine = np.zeros((each, len(UNREADABLE)), np.uint8)
    mine[: len(ids)] = np.frombuffer(b"".join(ids), np.uint8).reshape(len(ids), -1)
    told = np.asarray(multihost_utils.process_allgather(mine))
    return [told[number % parts, number // parts].tobytes() for number in range(len(items))]


def _id(items: Sequence[Item], number: int) -> bytes:
    try:
        return item_id(items[number])
    except ValueError:
        return UNREADABLE


class _Unchanged(Sequence[Item]):
    """Some of the items by number, read when they are asked for, as they were when hashed."""

    def __init__(self, items: Sequence[Item], numbers: Sequence[int], ids: Sequence[bytes]):
        self._items, self._numbers, self._ids = items, numbers, ids

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = self._numbers[index]
        item = self._items[number]
        if self._ids[number] not in (UNREADABLE, item_id(item)):
            raise ValueError(
                f"{name_of(item)} has changed while it was evaluated; let the data be, and evaluate"
                " again"
            )
        return item
