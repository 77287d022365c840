"""The bulk encoder: items to embeddings, for evaluation, Embedder, jobs/embed and export alike.

Threads preprocess items ahead of the devices, rows fill batches of a few shapes, and results are
fetched one batch late, so that the devices have work while the host packs and converts. Each
process of a mesh preprocesses and packs its own part of the items, and gets all embeddings. An
embedding that is not finite is never handed out.
"""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int

from unime_jax import paths, sharding
from unime_jax.backbones.preprocessing.prompts import name_of
from unime_jax.batch import Item, Row
from unime_jax.data.ahead import map_ahead
from unime_jax.data.bucket_filling import fill_buckets
from unime_jax.data.inference_batches import Batch, Shapes, batches, blocks_of, prepare
from unime_jax.data.inference_shapes import Ladder
from unime_jax.data.shapes import BatchShapes
from unime_jax.data.shared_rows import Prepared, own_part, replicate, sizes_of_all
from unime_jax.inference import encoder_programs as programs
from unime_jax.inference.encoder_programs import Model
from unime_jax.models.forward import (
    Constants,
    Encode,
    cause_of_nonfinite,
)
from unime_jax.operations import watchdog

T = TypeVar("T")
Encoder = Callable[[Sequence[Item]], Float32[np.ndarray, "n D"]]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Unit-norm embeddings of a block of items, in order; items left out are not among them.

    Attributes:
      numbers: int [m], of the items.
      truncated: how many texts were cut to the longest length.
      unmatched_markers: how many items have image markers without an image.
    """

    numbers: Int[np.ndarray, " m"]
    vectors: Float32[np.ndarray, "m D"]
    truncated: int
    unmatched_markers: int


class NonFiniteError(ValueError):
    """Embeddings that hold NaN or infinity.

    Attributes:
      rows: numbers of their items.
      total: how many items were in their batch.
      cause: a sentence on where it comes from.
    """

    def __init__(self, rows: Sequence[int], total: int, cause: str):
        self.rows, self.total, self.cause = list(rows), total, cause
        super().__init__(f"the embeddings of rows {self.rows[:10]} are not finite: {cause}")

    def of(self, name: str) -> str:
        """The message, given the name of the first row's item."""
        return (
            f"{name}: its embedding is not finite ({len(self.rows)} of the {self.total} in its"
            f" batch are not): {self.cause}"
        )


def make_encoder(
    encode: Encode,
    parameters: tuple[paths.Parameters, paths.Parameters],
    preprocess: Callable[[Item], Row],
    shapes: BatchShapes | Ladder,
    mesh: Mesh,
    constants: Constants | None = None,
) -> Encoder:
    """A function from items to unit-norm float32 embeddings, in the items' order.

    `parameters`: trainable and frozen; `constants`: see `Model`. Items run in batches of
    `shapes.rows`, all of one program, or of one for each rung of a ladder that they need. They may
    be a lazy sequence: threads index each item once. Rows of clips have a program of their own
    where their patches take more bytes.
    Every process of the mesh must make the same calls and gets all embeddings.

    The encoder raises what indexing and `preprocess` raise, as it is, and ValueError that names an
    item whose embedding is not finite.
    """
    model = Model(encode, parameters, mesh, constants)
    by_size: Shapes = shapes if isinstance(shapes, Ladder) else _Always(shapes)

    def encoder(items: Sequence[Item]) -> np.ndarray:
        blocks = encode_blocks(model, items, preprocess, by_size, window=shapes.rows)
        try:
            (encoded,) = blocks
        except NonFiniteError as error:
            raise ValueError(error.of(name_of(items[error.rows[0]]))) from error
        return encoded.vectors

    return encoder


class _Always:
    """The same shapes for rows of any size."""

    def __init__(self, shapes: BatchShapes):
        self._shapes = shapes

    def __call__(self, tokens: int, tiles: int, clips: bool = False) -> BatchShapes:
        return self._shapes.with_clips() if clips else self._shapes


def encode_blocks(
    model: Model,
    items: Sequence[T],
    preprocess: Callable[[T], Row | None],
    shapes: Shapes,
    *,
    window: int,
    block: int | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> Iterator[Encoded]:
    """Embeddings of one block of consecutive items after the other.

    A batch holds rows of one block and one shape. It is launched when it is full, or at the end of
    its block. So embeddings follow from a block's items and `shapes` alone, to the last bit, while
    the devices go on from block to block. In a block of no more than `window` items, shorter rows
    take the room that longer ones leave. Of larger ones, programs compile in threads from the
    first row on that needs them.

    Args:
      preprocess: makes an item's row, in threads, where `items` is indexed, too; None: the item is
        left out.
      window: items that are preprocessed ahead.
      block: items of a block; None: all items are one.
      progress: is called with the number of rows whenever so many more are encoded.

    Raises:
      NonFiniteError: with the numbers of the items whose embeddings are not finite.
      RuntimeError: another process could not preprocess one of its items.
    """
    part, parts = own_part(model.mesh)
    each = -(-window // parts)
    rows = map_ahead(
        functools.partial(prepare, items, preprocess, shapes),
        range(part, len(items), parts),
        ahead=each,
    )
    blocks = blocks_of(len(items), block or len(items))
    yield from encode_rows(model, rows, blocks, shapes, each=each, progress=progress)


def encode_rows(
    model: Model,
    rows: Generator[Prepared, None, None],
    blocks: Sequence[range],
    shapes: Shapes,
    *,
    each: int,
    progress: Callable[[int], object] = lambda rows: None,
) -> Iterator[Encoded]:
    """As `encode_blocks`, of rows that are made elsewhere.

    Args:
      rows: of this process's items, in order; closed at the end, so that its threads end, too.
      blocks: numbers of the items of each block.
      each: items of a process that are told the others at a time.

    Raises:
      NonFiniteError, RuntimeError: as `encode_blocks`.
    """
    part, parts = own_part(model.mesh)
    window = each * parts
    with contextlib.closing(rows), programs.compiling(model) as needs:
        sized = sizes_of_all(rows, model.mesh, total=blocks[-1].stop, each=each)
        steps = batches(sized, blocks, shapes, parts, window=window, needs=needs)
        yield from _collected(model, _launched(model, steps, part, parts), shapes, progress)


class _Running(NamedTuple):
    """A batch on the devices: item numbers [C, R] (-1: padding) and embeddings, by bucket."""

    batch: Batch
    numbers: Sequence[jax.Array | np.ndarray]
    vectors: Sequence[jax.Array]


def _launched(
    model: Model, steps: Iterator[Batch | range], part: int, parts: int
) -> Iterator[_Running | range]:
    """Batches at work, each handed on after the next one is launched; blocks in their place."""
    held: collections.deque[_Running | range] = collections.deque()
    running = 0
    for step in steps:
        if isinstance(step, range):
            held.append(step)
        else:
            held.append(_launch(model, step, part, parts))
            running += 1
        while running > 1 or held and isinstance(held[0], range):
            first = held.popleft()
            running -= isinstance(first, _Running)
            yield first
    yield from held


def _launch(model: Model, batch: Batch, part: int, parts: int) -> _Running:
    """Packs this process's rows and starts the program; nothing is waited for, but a compiler."""
    shapes, mesh = batch.shapes, model.mesh
    groups, places = fill_buckets(
        list(batch.rows.values()), shapes, process_index=part, process_count=parts
    )
    numbers = [np.full(group.embedded_shape, -1, np.int32) for group in groups]
    for number, (group, chunk, row) in zip(batch.rows, places, strict=True):
        numbers[group][chunk, row] = number
    spread = sharding.chunked_rows(mesh)
    on_device = jax.tree.map(lambda x: sharding.to_global(x, spread), groups)
    run = programs.compiled(model, shapes)
    with jax.set_mesh(mesh):
        vectors = run(*model.parameters, on_device)
    for array in vectors:
        array.copy_to_host_async()
    if parts == 1:
        return _Running(batch, numbers, vectors)
    return _Running(batch, [replicate(n, spread) for n in numbers], vectors)


def _collected(
    model: Model,
    steps: Iterator[_Running | range],
    shapes: Shapes,
    progress: Callable[[int], object],
) -> Iterator[Encoded]:
    """Each block's embeddings, put together from those of its batches."""
    vectors: np.ndarray | None = None
    kept: list[np.ndarray] = []
    truncated = unmatched = 0
    for step in steps:
        if isinstance(step, _Running):
            block, sizes = step.batch.block, step.batch.sizes
            numbers, fetched = _fetch(model, step)
            if vectors is None:
                vectors = np.zeros((len(block), fetched.shape[1]), np.float32)
            vectors[numbers - block.start] = fetched
            kept.append(numbers)
            truncated += sum(size.truncated for size in sizes)
            unmatched += sum(size.unmatched_markers for size in sizes)
            progress(len(numbers))
            continue
        if vectors is None:
            vectors = np.zeros((0, programs.width(model, shapes(1, 0))), np.float32)
        numbers = np.sort(np.concatenate([np.zeros(0, np.int32), *kept]))
        if len(numbers) < len(vectors):
            vectors = vectors[numbers - step.start]
        yield Encoded(numbers, vectors, truncated, unmatched)
        vectors, kept, truncated, unmatched = None, [], 0, 0


def _fetch(
    model: Model, running: _Running
) -> tuple[Int[np.ndarray, " m"], Float32[np.ndarray, "m D"]]:
    """Waits for a batch: item numbers and embeddings."""
    numbers = np.concatenate([np.asarray(part).ravel() for part in running.numbers])
    vectors = np.concatenate([np.asarray(part) for part in running.vectors])
    watchdog.progress()
    live = numbers >= 0
    numbers, vectors = numbers[live], vectors[live]
    bad = sorted(numbers[~np.isfinite(vectors).all(axis=1)].tolist())
    if bad:
        raise NonFiniteError(bad, len(numbers), cause_of_nonfinite(model.parameters))
    return numbers, vectors
