"""Content hashes of a model folder: a moved folder is the same model, changed files are not."""

import concurrent.futures
import hashlib
import pathlib
from collections.abc import Mapping

from unime_jax.backbones.backbone import Backbone
from unime_jax.operations import watchdog

# Everything that decides an embedding: configurations (sentence-transformers has some in folders
# of their own), tokenizer and processor, weights.
FILES = (
    "*.json",
    "*/config.json",
    "*.jinja",
    "*.txt",
    "tokenizer.model",
    "spiece.model",
    "*.safetensors",
)
THREADS = 8  # files that are read at the same time


def fingerprint(backbone: Backbone) -> dict[str, str]:
    """BLAKE2b hashes (128 bit, hexadecimal) of the files of a model, by file name.

    Names of an adapter's files start with "adapter/". All bytes are read, weights included, which
    takes as long as loading them.
    """
    folders = {"": backbone.folder}
    if backbone.adapter:
        folders["adapter/"] = backbone.adapter
    return hashes(
        {
            prefix + file.relative_to(folder).as_posix(): file
            for prefix, folder in folders.items()
            for pattern in FILES
            for file in folder.glob(pattern)
        }
    )


def hashes(files: Mapping[str, pathlib.Path]) -> dict[str, str]:
    """BLAKE2b hashes (128 bit, hexadecimal) of files, by their names in order."""
    names = sorted(files)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(_hash, (files[name] for name in names))))


def _hash(file: pathlib.Path) -> str:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    watchdog.progress()
    return digest
