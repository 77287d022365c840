"""Encoder of several datasets: full batches of their items together, shared items once."""

from collections.abc import Sequence
from typing import overload

import numpy as np
from jaxtyping import Float32

from unime_jax.batch import Item
from unime_jax.evaluation.encoding.item_table import Encode, ItemTable, Key

LIMIT = 2**27  # bytes of vectors: 9,000 items of 3584 numbers


class SharedEncoder:
    """An encode function that gives an item that it has encoded before the same vector.

    Datasets of MMEB hardly share items, but MiniMMEB's share a quarter. The first `limit` bytes of
    vectors are kept, in float32; items beyond them are encoded once a group. An encoder that has
    its memory on disk needs none here: a limit of 0.
    """

    def __init__(self, encode: Encode, limit: int = LIMIT):
        self._encode, self._room = encode, limit
        self._known: dict[Key, Float32[np.ndarray, " D"]] = {}
        self._group: dict[Key, Float32[np.ndarray, " D"]] = {}

    def encode_group(self, datasets: Sequence[Sequence[Item]]) -> None:
        """Encodes the items of a few datasets in one call, whose vectors are kept until the next.

        Datasets of a few hundred items would fill their last batch in part, and the devices would
        wait for the first rows of each.
        """
        self._group = {}
        new: dict[Key, tuple[Sequence[Item], int]] = {}
        for items in datasets:
            for number, key in enumerate(_keys(items)):
                if key not in self._known:
                    new.setdefault(key, (items, number))
        if new:
            vectors = np.asarray(self._encode(_Selected(list(new.values()))))
            self._group = dict(zip(new, vectors, strict=True))
            self._keep(list(new), vectors)

    def __call__(self, items: Sequence[Item]) -> np.ndarray:
        keys = _keys(items)
        earlier = [self._group.get(key, self._known.get(key)) for key in keys]
        new = [number for number, vector in enumerate(earlier) if vector is None]
        if len(new) == len(keys):
            vectors = np.asarray(self._encode(items))
            self._keep(keys, vectors)
            return vectors
        known = [number for number, vector in enumerate(earlier) if vector is not None]
        values = [vector for vector in earlier if vector is not None]
        vectors = np.empty((len(keys), *values[0].shape), values[0].dtype)
        vectors[known] = values
        if new:
            vectors[new] = self._encode(_Selected([(items, number) for number in new]))
            self._keep([keys[number] for number in new], vectors[new])
        return vectors

    def _keep(self, keys: Sequence[Key], vectors: np.ndarray) -> None:
        if vectors.ndim != 2 or not len(vectors) == len(keys) > 0:
            return  # no item, or an error that is raised elsewhere
        fitting = min(len(keys), self._room // vectors[0].nbytes)
        self._room -= fitting * vectors[0].nbytes
        copies = vectors[:fitting].copy()  # a view would keep all of them
        self._known.update(zip(keys, copies))


def _keys(items: Sequence[Item]) -> Sequence[Key]:
    return items.keys if isinstance(items, ItemTable) else [item.key for item in items]


class _Selected(Sequence[Item]):
    """Items of several sequences by number, read when they are asked for."""

    def __init__(self, places: Sequence[tuple[Sequence[Item], int]]):
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [items[number] for items, number in self._places[index]]
        items, number = self._places[index]
        return items[number]
