"""Training and evaluation on clips: MiniVideo's pairs from files to scores of an export."""

import jax
import numpy as np
import pytest

from data_pipelines import mini_video
from data_pipelines.mini_video import content
from experiments import evaluate as evaluation
from experiments import stage2
from tests.jobs import tiny_run
from unime_jax import Embedder, sharding
from unime_jax.data.settings import Bucket
from unime_jax.data.user_inputs import IMAGE_SUFFIX, TEXT_SUFFIX
from unime_jax.evaluation import scores
from unime_jax.jobs import evaluate, train

ROWS = {"seed": 0, "train_rows": 24, "eval_rows": 2}
NAMES = {dataset.name for dataset in content.DATASETS}


@pytest.fixture(scope="module")
def clips_data(made_once):
    """MiniMMEB with a backbone of a few thousand parameters, and MiniVideo beside it."""
    return made_once(
        "mini_video", lambda folder: mini_video.prepare(folder, **ROWS, backbone=tiny_run.SIZE)
    )


@pytest.mark.slow
def test_a_model_is_trained_on_clips_and_its_export_embeds_them(clips_data, tmp_path):
    recipe = stage2.get_config("mini_video")
    config = tiny_run.make_config(clips_data)
    config.steps = 3
    config.data.train, config.data.clips = recipe.data.train, recipe.data.clips
    config.data.weights = {"Directions": 1, "Clips_t2v": 1, "images/Scenes_t2i": 1}
    config.data.buckets = (Bucket(tokens=60, tiles=3), Bucket(tokens=60, tiles=6))
    config.data.max_bad_share = 0.0
    config.evaluation.update({k: recipe.evaluation[k] for k in ("mmeb", "images", "image_prompt")})
    config.evaluation.limit = 1
    train.run(config, tmp_path / "run")
    lines = tiny_run.metrics(tmp_path / "run")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 3 and np.isfinite(losses).all()
    sides = scores.read_scores(tmp_path / "run")
    assert set(sides["before"]["datasets"]) == set(sides["after"]["datasets"]) == NAMES
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Clips_t2v" in report

    # Evaluated apart from training, the export has the run's own scores.
    apart = evaluation.get_config("mini_video")
    apart.backbone, apart.data.folder = str(tmp_path / "run"), str(clips_data)
    apart.data.prepare.module = apart.evaluation.cache = ""
    apart.evaluation.limit, apart.batch_size = 1, 32
    evaluate.run(apart, tmp_path / "evaluation")
    found = scores.read_scores(tmp_path / "evaluation")["scores"]
    assert found["datasets"] == sides["after"]["datasets"] and found["VQA"] == sides["after"]["VQA"]

    # UniME's sums: a clip and a text embedded apart, and added.
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    model = Embedder.from_pretrained(tmp_path / "run" / "hf", dtype="float32", mesh=mesh)
    clip = next((clips_data / "mini_video" / "clips").iterdir())
    summed = model.encode_sum([{"video": clip, "text": "red"}, {"video": clip}])
    alone = model.encode([{"video": clip}], suffix=IMAGE_SUFFIX)
    expected = alone + model.encode(["red"], suffix=TEXT_SUFFIX)
    np.testing.assert_allclose(summed[0], (expected / np.linalg.norm(expected))[0], atol=2e-5)
    np.testing.assert_allclose(summed[1], alone[0], atol=2e-5)
