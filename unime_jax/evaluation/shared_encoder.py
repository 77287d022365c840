"""Encoder that keeps vectors of items that several datasets share, up to a limit of memory."""

from collections.abc import Sequence
from typing import overload

import numpy as np
from jaxtyping import Float32

from unime_jax.batch import Item
from unime_jax.evaluation.item_table import Encode, ItemTable, Key

LIMIT = 2**27  # bytes of vectors: 9,000 items of 3584 numbers


class SharedEncoder:
    """An encode function that gives an item that it has encoded before the same vector.

    Datasets of MMEB hardly share items, but MiniMMEB's share a quarter. The first `limit` bytes of
    vectors are kept, in float32; items beyond them are encoded once a dataset.
    """

    def __init__(self, encode: Encode, limit: int = LIMIT):
        self._encode, self._room = encode, limit
        self._known: dict[Key, Float32[np.ndarray, " D"]] = {}

    def __call__(self, items: Sequence[Item]) -> np.ndarray:
        keys = items.keys if isinstance(items, ItemTable) else [item.key for item in items]
        new = [number for number, key in enumerate(keys) if key not in self._known]
        known = [number for number, key in enumerate(keys) if key in self._known]
        if not known:
            vectors = np.asarray(self._encode(items))
            self._keep(keys, vectors)
            return vectors
        first = self._known[keys[known[0]]]
        vectors = np.empty((len(keys), len(first)), first.dtype)
        vectors[known] = [self._known[keys[number]] for number in known]
        if new:
            vectors[new] = self._encode(_Selected(items, new))
            self._keep([keys[number] for number in new], vectors[new])
        return vectors

    def _keep(self, keys: Sequence[Key], vectors: np.ndarray) -> None:
        if vectors.ndim != 2 or not len(vectors) == len(keys) > 0:
            return  # no item, or an error that is raised elsewhere
        fitting = min(len(keys), self._room // vectors[0].nbytes)
        self._room -= fitting * vectors[0].nbytes
        copies = vectors[:fitting].copy()  # a view would keep all of them
        self._known.update(zip(keys, copies))


class _Selected(Sequence[Item]):
    """Some of a sequence's items, read when they are asked for."""

    def __init__(self, items: Sequence[Item], numbers: Sequence[int]):
        self._items, self._numbers = items, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self._items[number] for number in self._numbers[index]]
        return self._items[self._numbers[index]]
