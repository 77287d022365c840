"""A model by the content of its files, so that a folder may move and another model is noticed."""

import concurrent.futures
import hashlib
import pathlib

from unime_jax.backbones.backbone import Backbone
from unime_jax.operations import watchdog

# Everything that decides an embedding: configurations (sentence-transformers has some in folders
# of their own), tokenizer and processor, weights.
FILES = ("*.json", "*/config.json", "*.jinja", "*.txt", "tokenizer.model", "*.safetensors")
THREADS = 8  # files that are read at the same time


def fingerprint(backbone: Backbone) -> dict[str, str]:
    """BLAKE2b (128 bit) of each of its files by name, an adapter's under "adapter/".

    All bytes are read, the weights' too: as long as it takes to load them.
    """
    folders = {"": backbone.folder}
    if backbone.adapter:
        folders["adapter/"] = backbone.adapter
    files = {
        prefix + file.relative_to(folder).as_posix(): file
        for prefix, folder in folders.items()
        for pattern in FILES
        for file in folder.glob(pattern)
    }
    names = sorted(files)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(_hash, (files[name] for name in names))))


def _hash(file: pathlib.Path) -> str:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    watchdog.progress()
    return found
