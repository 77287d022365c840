"""A corpus of thirteen distinct items, a config for it, and what a run leaves of it."""

import numpy as np

from experiments import embed as experiment
from tests.models.oracle import picture
from unime_jax import config, config_reader
from unime_jax.batch import Item, Media
from unime_jax.data.embedding_store import item_id, open_embeddings

EXACT = 2e-5  # largest absolute difference between unit vectors, float32
PREFIX, SUFFIX = "Represent: ", " in one word:"
RED, BLUE, GREEN = (picture(20, 24, seed) for seed in range(3))
WIDE = picture(28, 20, 3)


def row(query, positive, negatives=(), image=("", b""), negative_images=()):
    texts, images = list(negatives), list(negative_images)
    texts += [""] * (len(images) - len(texts))
    return {
        "qry": query,
        "qry_image_path": image[0],
        "qry_image": image[1],
        "pos_text": positive,
        "pos_image_path": "",
        "pos_image": b"",
        "neg_text": texts,
        "neg_image_path": [path for path, _ in images],
        "neg_image": [data for _, data in images],
    }


DATA = {
    "b": [
        row("what?", "a circle", ["a square", "a circle"], ("red.png", RED)),
        row("what?", "a square", ["a triangle"], ("blue.png", BLUE)),
        row("what?", "a circle", [], ("red.png", RED)),
    ],
    "a": [
        row("the sea", "water", negative_images=[("wide.png", WIDE), ("red.png", RED)]),
        row("the sea " * 30, "a circle", ["land", "mountain", "hill"]),
    ],
}
# Splits by name, rows in order, queries first; of equal items the first.
ITEMS = [
    ("the sea", None),
    ("water", None),
    ("", ("wide.png", WIDE)),
    ("", ("red.png", RED)),
    ("the sea " * 30, None),
    ("a circle", None),
    ("land", None),
    ("mountain", None),
    ("hill", None),
    ("what?", ("red.png", RED)),
    ("a square", None),
    ("what?", ("blue.png", BLUE)),
    ("a triangle", None),
]


def id_of(text, image):
    return item_id(Item(text, (Media(*image),) if image else ()))


IDS = [id_of(*item) for item in ITEMS]


def make_config(pair):
    config = experiment.get_config()
    config.backbone = str(pair.backbone.folder)
    config.max_length = 128
    config.batch_size = 2
    config.prefix, config.suffix = PREFIX, SUFFIX
    config.data.folder = "nowhere"
    config.data.datasets = ("pairs",)
    config.output.block = 4
    return config


def with_lines(given, folder):
    """The config on a text file, which other processes can read, too."""
    (folder / "texts.txt").write_text("".join(f"number {n}\n" for n in range(13)))
    given.data.folder, given.data.datasets = str(folder), ()
    given.data.texts = ("texts.txt",)
    return given


def settings_of(given) -> config.EmbedConfig:
    return config_reader.read(config.EmbedConfig, given.to_dict())


def content(workdir) -> dict[str, bytes]:
    """The files of the store."""
    files = [workdir / "ids.npy", *workdir.glob("vectors/*"), workdir / "embeddings.json"]
    return {file.relative_to(workdir).as_posix(): file.read_bytes() for file in files}


def vectors(workdir) -> np.ndarray:
    store = open_embeddings(workdir)
    return store.vectors(store.ids)
