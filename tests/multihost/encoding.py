"""Two processes that embed together, and what each had to do for it.

Each leaves <folder>/<process>.npz. An item is (text, PNG). Two devices a process, on meshes where
both processes have rows of their own, and where both have all rows.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from unime_jax import embedder, sharding
from unime_jax.backbones import open_backbone
from unime_jax.batch import Item, Media, Row
from unime_jax.data.shapes import BatchShapes, Bucket
from unime_jax.inference.encode import make_encoder
from unime_jax.models.inference import default_execution

MESHES = {"rows": (1, 2, 2), "tensor": (1, 1, 4)}
BUCKETS = (Bucket(32, 0), Bucket(150, 3))
BAD = "this item cannot be preprocessed"


class Counting:
    """A preprocessor that notes which texts it has been given."""

    def __init__(self, preprocess):
        self.prompt, self.preprocess = preprocess.prompt, preprocess
        self.seen: list[str] = []

    def __call__(self, item: Item) -> Row:
        self.seen.append(item.text)
        if item.text == BAD:
            raise ValueError("bad item")
        return self.preprocess(item)


def embed(folder: str, items: list[Item]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    backbone = open_backbone(folder, max_length=150)
    dtype = jnp.dtype("float32")
    execution = default_execution(dtype)
    for name, shape in MESHES.items():
        mesh = sharding.make_mesh(*shape)
        model = embedder.Embedder(backbone, mesh=mesh, dtype=dtype, execution=execution)
        counting = model._preprocess = Counting(backbone.preprocess)
        given = [{"text": i.text, "image": [image.data for image in i.media]} for i in items]
        given = given[:3] if name == "tensor" else given  # each shape compiles anew
        found[f"{name}.embedder"] = model.encode(given, batch_size=4)
        found[f"{name}.embedder.seen"] = np.array(sorted(counting.seen))
        if name == "tensor":
            continue
        counting.seen.clear()
        shapes = BatchShapes(BUCKETS, backbone.layout, 4, 8)
        encoder = make_encoder(model.model.encode, model.model.parameters, counting, shapes, mesh)
        found["rows.encoder"] = encoder(items)
        found["rows.encoder.seen"] = np.array(sorted(counting.seen))
        found["rows.none"] = encoder([])
        try:
            encoder([*items[:5], Item(BAD), *items[6:]])
        except Exception as error:
            found["rows.error"] = np.array(f"{type(error).__name__}: {error}")
    return found


def run(
    coordinator: str,
    process: int,
    folder: str,
    given: list[tuple[str, bytes]],
    out: pathlib.Path,
) -> None:
    items = [Item(text, (Media("a", data),) if data else ()) for text, data in given]
    jax.distributed.initialize(coordinator, 2, process)
    np.savez(out / f"{process}.npz", **embed(folder, items))
    jax.distributed.shutdown()
