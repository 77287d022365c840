"""The input pipeline: packed batches from any step on, prepared ahead."""

import dataclasses
import functools
import hashlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence

import grain
import numpy as np
from absl import flags, logging

from unime_jax.data.formats import Source
from unime_jax.data.images import MAX_PIXELS
from unime_jax.data.mixture import Pick, mixture
from unime_jax.data.packing import Prepared, Preprocess, pack, prepare
from unime_jax.data.quarantine import BadExample, UnusableSource
from unime_jax.data.schema import to_example
from unime_jax.data.shapes import BatchShapes

BATCHES_AHEAD = 2
SHARED_MEMORY = "/dev/shm"
MIN_SHARED_MEMORY = 2**30  # bytes; rows that are ready in all workers take some hundred MB
MAX_TRIES = 1000  # bad rows in a row before a source counts as unusable


def make_loader(
    sources: Mapping[str, Source],
    weights: Mapping[str, float],
    *,
    batch_size: int,
    source_run: int,
    seed: int,
    preprocess: Preprocess,
    shapes: BatchShapes,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    first_batch: int = 0,
    groups: Mapping[str, str] | None = None,
    clusters: Mapping[str, np.ndarray] | None = None,
    cluster_size: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> grain.DatasetIterator:
    """An endless iterator of (Batch of numpy arrays, PackInfo): this process's part of each batch.

    Order and mixture are those of `mixture`; `Batch.source` counts `sorted(weights)`. Examples
    are read by threads, or with `workers` > 0 by as many processes (then `preprocess` and the
    sources must be picklable), which changes nothing in the order. Two batches are kept ready;
    preparing starts with the first `next` or with `start_prefetch()`. `close()` ends the workers.

    Of more negatives than `shapes.negatives` a row has a draw in every pass, see `draw_negatives`.
    A bad example is replaced by the next good row of its source and named in `PackInfo.bad`.

    Which rows global batch n has follows from n: a run that has done n steps goes on with
    `first_batch=n`, with any number of processes and `workers`; there is no state to save.

    Raises ValueError as `mixture` does, and from `next` UnusableSource, with the rows to blame,
    when a source has no usable rows.
    """
    if shapes.rows < batch_size * (2 + shapes.negatives):
        raise ValueError(
            f"a batch has room for {shapes.rows} rows; {batch_size} pairs with {shapes.negatives} "
            f"negatives each can have {batch_size * (2 + shapes.negatives)}"
        )
    picks = mixture(
        sources,
        weights,
        batch_size=batch_size,
        source_run=source_run,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
        first_batch=first_batch,
        groups=groups,
        clusters=clusters,
        cluster_size=cluster_size,
    )
    names = sorted(weights)
    read = functools.partial(
        read_example,
        {name: sources[name] for name in names},
        preprocess=preprocess,
        shapes=shapes,
        seed=seed,
        max_pixels=max_pixels,
    )
    put = functools.partial(
        pack,
        shapes=shapes,
        sources=names,
        process_index=process_index,
        process_count=process_count,
    )
    threads = max(1, min(16, os.cpu_count() or 1) // max(workers, 1))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    examples = picks.map(read).to_iter_dataset(options)
    if workers:
        shared = grain.experimental.DatasetOptions(min_shm_size=_smallest_shared())
        examples = grain.experimental.WithOptionsIterDataset(examples, shared)
        if not flags.FLAGS.is_parsed():  # Grain asks absl before it starts processes: a notebook
            flags.FLAGS.mark_as_parsed()
        examples = examples.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4),
            worker_init_fn=functools.partial(_end_with_parent, os.getpid()),
        )
    # after mp_prefetch, so that the workers share out examples and the order stays
    batches = examples.batch(batch_size // process_count, batch_fn=put)
    ready = grain.experimental.ThreadPrefetchIterDataset(
        batches, prefetch_buffer_size=BATCHES_AHEAD
    )
    return iter(ready)


def _smallest_shared() -> int:
    """Bytes from which on an array of a row comes from a worker in shared memory, not by a pipe.

    Rows are pytrees, so that Grain sees their arrays. Containers often have 64 MB of shared memory,
    and a process that writes beyond it is killed.
    """
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:  # no Linux
        free = 0
    if free >= MIN_SHARED_MEMORY:
        return 2**16
    logging.warning(
        "%s has %d MB free: rows come from data.workers through pipes, which is slower. Give the "
        "container %d MB or more, by docker run --shm-size or an emptyDir of medium Memory",
        SHARED_MEMORY,
        free >> 20,
        MIN_SHARED_MEMORY >> 20,
    )
    return sys.maxsize


def _end_with_parent(parent: int, *_: int) -> None:
    """In a worker: Grain's stay, and keep their memory, when the process they serve is killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()


def draw_negatives(most: int, seed: str, count: int) -> Sequence[int]:
    """Numbers of at most `most` of `count` negatives, in order, none twice.

    They follow from `seed` alone, which names the row and the pass over its source.
    """
    if count <= most:
        return range(count)

    def rank(number: int) -> bytes:
        return hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()

    return sorted(sorted(range(count), key=rank)[:most])


def read_example(
    sources: Mapping[str, Source],
    pick: Pick,
    *,
    preprocess: Preprocess,
    shapes: BatchShapes,
    seed: int,
    max_pixels: int = MAX_PIXELS,
) -> Prepared:
    """The picked row, or the next one of its source that is good; the bad ones on the way noted.

    Of more negatives than `shapes` has room for some are drawn, others in every pass.

    Raises UnusableSource when the whole source, or MAX_TRIES rows in a row, are bad.
    """
    source = sources[pick.source]
    tries = min(len(source), MAX_TRIES)
    bad = []
    for step in range(tries):
        index = (pick.row + step) % len(source)
        try:
            draw = functools.partial(
                draw_negatives, shapes.negatives, f"{seed}/{pick.source}/{index}/{pick.epoch}"
            )
            example = to_example(pick.source, source[index], str(index), max_pixels, draw=draw)
            prepared = prepare(example, preprocess, shapes)
        except BadExample as error:
            bad.append(error.item)
            continue
        return dataclasses.replace(prepared, bad=tuple(bad))
    raise UnusableSource(pick.source, len(source), tuple(bad))
