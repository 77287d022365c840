"""How far an embedding depends on what it is encoded with: not in float32, a little below it."""

import jax
import numpy as np
import pytest

from tests.backbones.tiny_texts import write_bert
from tests.tables import for_each
from unime_jax import Embedder, sharding

TEXTS = ["a", "a red circle", "a red circle left of a blue square and a green triangle", "blue"] * 3
LOWEST = {"float32": 1 - 1e-6, "bfloat16": 0.999, "int8": 0.999}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert") / "folder"
    path.mkdir()
    write_bert(path)
    return path


@for_each("dtype", LOWEST)
def test_alone_or_in_company_an_item_has_nearly_one_embedding(folder, dtype):
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    model = Embedder.from_pretrained(folder, dtype=dtype, max_length=48, mesh=mesh)
    together = model.encode(TEXTS)
    for number in (0, 2):
        alone = model.encode(TEXTS[number : number + 1])[0]
        assert float(np.dot(alone, together[number])) >= LOWEST[dtype]
    by_two = model.encode(TEXTS, batch_size=2)
    assert np.min(np.sum(by_two * together, axis=1)) >= LOWEST[dtype]
