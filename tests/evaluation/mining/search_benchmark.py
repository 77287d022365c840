"""Exact search of a corpus on disk beside faiss's flat index and NumPy; no test, run by hand.

    python -m tests.evaluation.mining.search_benchmark --faiss=<site-packages>

`--faiss` is a folder that faiss is installed in, if not this Python's. Blocks of queries go to both
in turn, so that what else the machine does slows both; recall is against NumPy for `--checked` of
them, and against faiss for all.
"""

import argparse
import pathlib
import sys
import tempfile
import time

import numpy as np

from unime_jax import sharding
from unime_jax.evaluation.mining import corpus_search


def write_corpus(file: pathlib.Path, rows: int, dimension: int) -> np.ndarray:
    """Random unit vectors, mapped into memory."""
    matrix = np.lib.format.open_memmap(file, "w+", np.float32, (rows, dimension))
    for start in range(0, rows, 2**14):
        part = matrix[start : start + 2**14]
        part[:] = unit(len(part), dimension, start + 1)
    matrix.flush()
    return np.load(file, mmap_mode="r")


def unit(rows: int, dimension: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dimension), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--dimension", type=int, default=1024)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=32768)
    parser.add_argument("--checked", type=int, default=512)
    parser.add_argument("--faiss", default="")
    parser.add_argument("--folder", default=None)
    options = parser.parse_args()
    sys.path.append(options.faiss)
    import faiss

    queries = unit(options.queries, options.dimension, 0)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        matrix = write_corpus(
            pathlib.Path(folder) / "corpus.npy", options.corpus, options.dimension
        )
        index = faiss.IndexFlatIP(options.dimension)
        for start in range(0, len(matrix), 2**16):
            index.add(np.ascontiguousarray(matrix[start : start + 2**16]))
        corpus = corpus_search.Corpus(
            np.arange(len(matrix), dtype=np.int32),
            lambda numbers: matrix[numbers],
            sharding.make_mesh(1, -1, 1),
            options.columns,
        )
        seconds, same = np.zeros(2), 0
        for start in range(0, len(queries), options.rows):
            own = queries[start : start + options.rows]
            none = [np.zeros(0, np.int32)] * len(own)
            begun = time.perf_counter()
            limit = np.full(len(own), np.inf, np.float32)
            number, _ = corpus_search.search(own, limit, none, corpus, options.k)
            between = time.perf_counter()
            _, theirs = index.search(own, options.k)
            seconds += between - begun, time.perf_counter() - between
            same += sum(len(np.intersect1d(*both)) for both in zip(number, theirs))
            if not start:
                first = number[: options.checked]
            done = start + len(own)
            print(f"{done} queries: ours {seconds[0]:.1f} s, faiss {seconds[1]:.1f} s", flush=True)
        scores = np.concatenate(
            [queries[: len(first)] @ matrix[s : s + 2**16].T for s in range(0, len(matrix), 2**16)],
            axis=1,
        )
        best = np.argpartition(-scores, options.k, axis=1)[:, : options.k]
        recall = np.mean([len(np.intersect1d(*both)) for both in zip(first, best)]) / options.k
    print(
        f"{options.queries} queries, {options.corpus} x {options.dimension}, k = {options.k}: ours"
        f" {seconds[0]:.1f} s, faiss {faiss.__version__} {seconds[1]:.1f} s, ratio"
        f" {seconds[0] / seconds[1]:.2f}; recall against NumPy {recall:.6f} ({len(first)} queries),"
        f" against faiss {same / options.k / len(queries):.6f}"
    )


if __name__ == "__main__":
    main()
