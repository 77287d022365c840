"""Merging of whole folders: what is written, from what, and what is refused."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments import merge as recipe
from tests.backbones.checkpoints import tensors
from tests.models.oracle import make_pair
from tests.tables import for_each
from unime_jax import main
from unime_jax.embedder import Embedder
from unime_jax.export import self_check
from unime_jax.jobs import merge

SAME = "multi_modal_projector"  # tensors that all parts have alike


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three models of one shape, with a few tensors in common. Read-only."""
    root = tmp_path_factory.mktemp("models")
    first = make_pair(root / "0", grid=2).backbone.folder
    before = tensors(first)
    for number in (1, 2):
        folder = shutil.copytree(first, root / str(number))
        rng = np.random.default_rng(number)
        noise = {k: rng.normal(scale=0.1, size=x.shape).astype(x.dtype) for k, x in before.items()}
        moved = {k: x if SAME in k else x + noise[k] for k, x in before.items()}
        save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return [root / str(number) for number in range(3)]


def config_of(folders, **changes):
    config = recipe.get_config()
    config.models = tuple(map(str, folders))
    config.max_length, config.verify = 256, False
    config.update(changes)
    return config


def test_a_merge_is_a_whole_folder(folders, tmp_path):
    merge.run(config_of(folders, weights=(1.0, 1.0, 2.0), verify=True), tmp_path / "run")
    print((tmp_path / "run/hf/README.md").read_text())
    print(sorted(x.name for x in (tmp_path / "run/hf").iterdir()))
