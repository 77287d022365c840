"""Embed what data sets and text files hold: vectors on disk, see data/embedding_store.py.

Every process works alone, on its own devices, on every n-th block of items; nothing but files is
exchanged between hosts. So hosts need not keep step, nor have as many items or shapes as others,
and when any of them dies the same command goes on with what is missing, on however many hosts and
devices. Whoever finds the last block written completes the folder.
"""

import array
import dataclasses
import hashlib
import importlib.metadata
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from unime_jax import config, config_reader, files, sharding
from unime_jax.backbones import Backbone, open_backbone
from unime_jax.backbones.io.fingerprint import fingerprint
from unime_jax.backbones.preprocessing.prompts import name_of
from unime_jax.batch import Item, Row
from unime_jax.data import schema
from unime_jax.data.embedding_store import IDENTITY
from unime_jax.data.embedding_store_writer import Writer
from unime_jax.data.items import Corpus, Items, Pairs, open_lines
from unime_jax.data.pairs import open_pairs
from unime_jax.data.quarantine import BadItem, Quarantine, failed_path
from unime_jax.data.truncation import kept, truncated
from unime_jax.embedder import Embedder
from unime_jax.inference.encode import NonFiniteError, encode_blocks
from unime_jax.jobs import preflight, preflight_models
from unime_jax.models.inference import default_execution
from unime_jax.operations import compilation_cache, disk_errors, workdir_lock
from unime_jax.operations.config_file import write_config

PACKAGES = ("unime_jax", "jax", "flax", "transformers")
POLL_SECONDS = 5


@dataclasses.dataclass(frozen=True)
class Work:
    """An embedding job that is set up: model, items and writer, before any weight is read."""

    settings: config.EmbedConfig
    backbone: Backbone
    items: Items
    writer: Writer
    prefix: str  # before every text
    dimension: int  # of an embedding that is kept


def run(config_dict: ConfigDict, workdir: files.Path) -> None:
    """Begins or resumes the embeddings in `workdir`.

    ids.npy holds what was embedded, and only that. Left out, and listed in quarantine.jsonl, are
    rows of a data set that training would leave out, items that the model cannot take, and empty
    lines. What was left out is not tried again when a run is resumed.

    Raises:
      ValueError: the config does not make sense, too much is bad, `workdir` was begun with another
        model, instruction or corpus, or another process writes the same part of it.
      RuntimeError: a disk takes no more.
    """
    settings = config_reader.read(config.EmbedConfig, config_dict.to_dict())
    preflight.check(
        lambda: local_mesh(settings.mesh),
        workdir,
        lambda problems: preflight_models.check_embedding(settings, problems),
    )
    # Hosts share the folder: each owns its part of it.
    lock = f"embed-{jax.process_index()}-of-{jax.process_count()}.lock"
    with (
        disk_errors.explained(workdir),
        workdir_lock.owned(workdir, lock, what="writes this part of the embeddings in"),
    ):
        compilation_cache.use_for_job(settings.compilation_cache, workdir)
        work = begin(settings, workdir)
        write_config(workdir, config_dict)
        complete = embed(work, process_index=jax.process_index(), process_count=jax.process_count())
        while not complete:  # JAX ends all processes when one leaves: the first waits for the last
            time.sleep(POLL_SECONDS)
            complete = work.writer.finish()
        logging.info("%s is complete", workdir)


def open_model(settings: config.EmbedConfig) -> Backbone:
    """The backbone of a job, without its weights."""
    return open_backbone(
        settings.backbone,
        max_length=settings.max_length,
        revision=settings.revision,
        processing=settings.processing,
    )


def begin(
    settings: config.EmbedConfig,
    workdir: files.Path,
    *,
    backbone: Backbone | None = None,
    items: Items | None = None,
) -> Work:
    """Indexes the corpus, and checks model and corpus against those that `workdir` began with.

    Args:
      backbone: that of `open_model`; None: it is opened.
      items: what is embedded; None: what `settings.data` names.
    """
    backbone = backbone or open_model(settings)
    defaults = backbone.defaults
    prefix = defaults.prompt(settings.prefix, None)
    asked = settings.truncate_dim
    dimension = kept(backbone.dimension, defaults.truncate_dim if asked is None else asked)
    items = Items(list(_corpora(settings.data))) if items is None else items
    logging.info("%d items in %d rows, %d bad rows", len(items), items.read, len(items.bad))
    if not len(items):
        Quarantine(workdir / "quarantine.jsonl", process_index=jax.process_index()).note(items.bad)
        why = f", the first of {len(items.bad)} bad rows: {items.bad[0]}" if items.bad else ""
        raise ValueError(f"config.data: there is nothing to embed in {items.read} rows{why}")
    provenance = {
        "backbone": backbone.base if backbone.adapter is None else str(backbone.adapter),
        "commits": dict(backbone.commits),
        "model": model_provenance(backbone, settings.dtype),
        "prefix": prefix,
        "suffix": settings.suffix,
        "corpus": {
            "datasets": settings.data.datasets,
            "splits": settings.data.splits,
            "sides": settings.data.sides,
            "texts": settings.data.texts,
            "items": len(items),
            "identity": IDENTITY,
            "ids": hashlib.blake2b(items.ids.tobytes(), digest_size=16).hexdigest(),
        },
        "versions": versions(),
    }
    writer = Writer(
        workdir,
        items=len(items),
        dimension=dimension,
        dtype=settings.output.dtype,
        block=settings.output.block,
        provenance=provenance,
    )
    return Work(settings, backbone, items, writer, prefix, dimension)


def model_provenance(backbone: Backbone, dtype: str) -> dict[str, Any]:
    """All of a model that its vectors follow from, as JSON."""
    return {
        "files": fingerprint(backbone),
        "processing": dataclasses.asdict(backbone.processing),
        "max_length": backbone.preprocess.prompt.max_length,
        "dtype": dtype,
    }


def versions() -> dict[str, str]:
    """Versions of the packages that vectors are made by."""
    return {name: _version(name) for name in PACKAGES}


def make_embedder(work: Work) -> Embedder:
    """The model with its weights, on the devices of this process."""
    dtype = jnp.dtype(work.settings.dtype)
    return Embedder(
        work.backbone,
        mesh=local_mesh(work.settings.mesh),
        dtype=dtype,
        execution=default_execution(dtype),
        truncate_dim=work.dimension,
    )


def embed(
    work: Work,
    *,
    process_index: int,
    process_count: int,
    embedder: Callable[[Work], Embedder] = make_embedder,
) -> bool:
    """One process's part; whether the folder is complete then.

    `embedder`: makes the model, where a block is missing.
    """
    writer, items, settings = work.writer, work.items, work.settings
    name = f"quarantine_{process_index}.jsonl" if process_index else "quarantine.jsonl"
    quarantine = Quarantine(writer.folder / name, settings.data.max_bad_share)
    quarantine.add(items.bad, items.read)
    mine = [n for n in writer.missing() if n % process_count == process_index]
    if mine:
        _write_blocks(work, mine, embedder(work), quarantine, show=process_index == 0)
    return writer.finish()


def local_mesh(sizes: config.MeshConfig) -> Mesh:
    """Over the devices of this process."""
    return sharding.make_mesh(sizes.data, sizes.fsdp, sizes.tensor, jax.local_devices())


def _write_blocks(
    work: Work, numbers: list[int], embedder: Embedder, quarantine: Quarantine, *, show: bool
) -> None:
    settings, items, block = work.settings, work.items, work.settings.output.block
    spans = [range(n * block, min((n + 1) * block, len(items))) for n in numbers]
    indices = array.array("q", itertools.chain.from_iterable(spans))
    bad: dict[int, BadItem] = {}

    def prepare(index: int) -> Row | None:
        item = Item("")
        try:
            item = items[index]
            return work.backbone.preprocess(
                dataclasses.replace(item, prefix=work.prefix, suffix=settings.suffix)
            )
        except ValueError as error:
            bad[index] = items.blame(index, failed_path(item, error), str(error))
            return None

    cut = 0
    with tqdm(total=len(indices), unit="item", disable=not show) as bar:
        blocks = encode_blocks(  # of the corpus's blocks only the last may be shorter
            embedder.model,
            indices,
            prepare,
            embedder.shapes(settings.batch_size),
            window=2 * settings.batch_size,
            block=block,
            progress=bar.update,
        )
        try:
            for number, span, encoded in zip(numbers, spans, blocks, strict=True):
                quarantine.add([bad.pop(i) for i in span if i in bad], len(span))
                vectors = truncated(encoded.vectors, embedder.dimension)
                work.writer.put(number, items.ids[np.asarray(indices)[encoded.numbers]], vectors)
                cut += encoded.truncated
        except NonFiniteError as error:
            name = name_of(items[indices[error.rows[0]]])
            raise ValueError(error.of(name)) from error
    if cut:
        logging.warning("%d texts were cut to %d tokens", cut, embedder.max_length)


def _corpora(data: config.CorpusConfig) -> Iterator[Corpus]:
    """Data sets, then text files, in the config's order."""
    folder = files.as_path(data.folder)
    datasets = {name: open_pairs(folder / name, data.columns) for name in data.datasets}
    schema.check_names(data.splits, {split for rows in datasets.values() for split in rows})
    for name, rows in datasets.items():
        for split in data.splits or sorted(rows):
            if split in rows:
                yield Pairs(f"{name}/{split}", rows[split], data.sides)
    for name in data.texts:
        yield open_lines(folder / name)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # a clone that is run where it lies
