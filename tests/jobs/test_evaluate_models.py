"""The evaluate job on every kind of model: its cosines are those of Embedder and NumPy."""

import json
import pathlib
import shutil

import huggingface_hub.constants
import numpy as np
import pytest

from data_pipelines import texts
from data_pipelines.mini_nli.content import triples
from experiments import evaluate as experiment
from tests.backbones.test_peft_targets import write_adapter
from unime_jax import Embedder, files
from unime_jax.backbones.io import model_folders
from unime_jax.data import embedding_store_writer
from unime_jax.data.formats import open_dataset
from unime_jax.evaluation import scores
from unime_jax.evaluation.stored import finished, results
from unime_jax.jobs import evaluate

LAST = 2e-6  # of a float32 cosine: other batches sum in another order
COARSE = 2e-2  # where activations are bfloat16


@pytest.fixture(scope="module")
def adapter(straight, tmp_path_factory):
    """An adapter of PEFT's own making, whose base is the run's export."""
    folder = tmp_path_factory.mktemp("adapter")
    write_adapter(straight / "hf", folder, target_modules=["q_proj", "down_proj"], r=4)
    return folder


@pytest.fixture
def hub_id(straight, tmp_path, monkeypatch):
    """The export as the main branch of a repository that was downloaded to the hub's cache."""
    repository = tmp_path / "models--org--tiny"
    commit = "1" * 40
    shutil.copytree(straight / "hf", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model_folders.download.cache_clear()
    yield "org/tiny"
    model_folders.download.cache_clear()


@pytest.fixture(scope="module")
def whole(data, straight, tmp_path_factory):
    """The work directory of an evaluation of the run's export in float32. Read-only."""
    workdir = tmp_path_factory.mktemp("evaluated")
    evaluate.run(make_config(data, straight), workdir)
    return workdir


def make_config(data, backbone, dtype="float32"):
    config = experiment.get_config()
    config.backbone, config.dtype = str(backbone), dtype
    config.data.folder = str(data)
    config.data.prepare.module = ""  # done by the fixture
    config.evaluation.limit = 1
    config.evaluation.composition = ""
    config.evaluation.cache = ""
    config.batch_size = 32
    return config


@pytest.mark.slow
def test_the_export_in_float32(data, straight, whole):
    check(whole, data, embedder(straight / "hf"), LAST)


@pytest.mark.slow
def test_a_hub_id(data, straight, whole, hub_id, tmp_path):
    """The same files, the same scores, and the same model to whoever resumes."""
    evaluate.run(make_config(data, hub_id), tmp_path / "run")
    assert scores.read_scores(tmp_path / "run") == scores.read_scores(whole)
    found, expected = (
        json.loads((workdir / finished.FOLDER / "evaluation_of.json").read_text())
        for workdir in (tmp_path / "run", whole)
    )
    assert found["model"] == expected["model"]


@pytest.mark.slow
def test_an_adapter_of_peft(data, straight, adapter, whole, tmp_path):
    evaluate.run(make_config(data, adapter), tmp_path)
    check(tmp_path, data, embedder(adapter), LAST)
    moved = cosines(tmp_path) - cosines(whole)
    assert np.abs(moved).max() > 1e-3, "the adapter takes part"


@pytest.mark.slow  # by day: int8 on held-out texts, below
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])  # whose activations are bfloat16
def test_weights_of_less_precision(data, straight, whole, tmp_path, dtype):
    evaluate.run(make_config(data, straight, dtype), tmp_path)
    check(tmp_path, data, embedder(straight / "hf", dtype), COARSE)
    assert 0 < np.abs(cosines(tmp_path) - cosines(whole)).max() < 0.1


@pytest.mark.slow
def test_a_work_directory_in_a_bucket_resumes(data, straight, whole, bucket, monkeypatch):
    workdir = files.as_path("gs://bucket/evaluated")
    config = make_config(data, straight)
    evaluate.run(config, workdir)
    assert scores.read_scores(workdir) == scores.read_scores(whole)
    names = bucket.names("bucket/evaluated/")
    done = sorted(path.name for path in (whole / finished.FOLDER).glob("*.npz"))
    assert {f"evaluated/results/{name}" for name in done} <= set(names)
    assert "evaluated/report.html" in names and not [n for n in names if n.endswith(".lock")]

    del bucket.objects["bucket/evaluated/results/mmeb-Crops.npz"]
    saved = []
    save = finished.save
    monkeypatch.setattr(finished, "save", lambda *args: (saved.append(args[1].name), save(*args)))
    evaluate.run(config, workdir)
    assert saved == ["Crops"]
    assert scores.read_scores(workdir) == scores.read_scores(whole)


@pytest.fixture(scope="module")
def taught(data):
    """Held-out triples and a teacher's embeddings of them, in the folder of the session's data."""
    train, test = triples(1, "train", 4), triples(1, "test", 12)
    texts.write(data / "held_out" / "texts", train, test)
    sentences = sorted({sentence for row in test for sentence in row})
    vectors = np.random.default_rng(0).normal(size=(len(sentences), 24)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    embedding_store_writer.write(data / "held_out" / "teacher", sentences, vectors)
    return sentences, vectors


def texts_config(data, straight, dtype="float32"):
    config = make_config(data, straight, dtype)
    config.data.teacher, config.data.suffix = "held_out/teacher", "\nIn one word:"
    config.evaluation.texts = "held_out/texts"
    config.evaluation.mmeb = config.evaluation.composition = config.evaluation.images = ""
    config.evaluation.agreement.temperature = 0.1
    return config


def test_held_out_texts_and_a_teacher_that_knows_them(data, straight, taught, tmp_path):
    sentences, teacher = taught
    found = {}
    for dtype, tolerance in (("float32", 1e-4), ("int8", 1e-3)):  # with bfloat16 activations
        workdir = tmp_path / dtype
        evaluate.run(texts_config(data, straight, dtype), workdir)
        found[dtype] = scores.read_scores(workdir)["scores"]["distillation"]
        student = embedder(straight / "hf", dtype)
        vectors = student.encode(sentences, prompt="", suffix="\nIn one word:")
        kl, overlap = agreement(teacher, vectors)
        assert found[dtype]["kl"] == pytest.approx(kl, rel=tolerance)
        one_place = 100 / (10 * len(sentences))
        assert found[dtype]["overlap"] == pytest.approx(overlap, abs=one_place)
    assert found["int8"]["kl"] != found["float32"]["kl"]
    assert "Held-out KL" in (workdir / "report.html").read_text()

    config = texts_config(data, straight, dtype)
    config.evaluation.agreement.temperature = 0.2
    with pytest.raises(ValueError, match="another evaluation. Changed since:\n  agreement: "):
        evaluate.run(config, workdir)

    # They need a teacher that knows them.
    config = texts_config(data, straight)
    config.data.teacher = ""
    with pytest.raises(
        ValueError, match="config.evaluation.texts='held_out/texts' and config.data"
    ):
        evaluate.run(config, tmp_path / "refused")
    config.data.teacher = "nowhere"
    with pytest.raises(ValueError, match="config.data.teacher: .*nowhere has no embeddings"):
        evaluate.run(config, tmp_path / "refused")
    sentences, vectors = taught
    embedding_store_writer.write(data / "few", sentences[1:], vectors[1:])
    config.data.teacher = "few"
    with pytest.raises(ValueError, match="held-out texts in .*few has no vector of "):
        evaluate.run(config, tmp_path / "refused")


def agreement(teacher: np.ndarray, student: np.ndarray) -> tuple[float, float]:
    """KL divergence at temperature 0.1, and percent of the ten nearest that both have."""
    count = len(teacher)
    others = ~np.eye(count, dtype=bool)
    shares, nearest = [], []
    for vectors in (teacher.astype(np.float64), student.astype(np.float64)):
        cosine = (vectors @ vectors.T)[others].reshape(count, -1)
        weights = np.exp(cosine / 0.1)
        shares.append(weights / weights.sum(axis=1, keepdims=True))
        nearest.append(np.argsort(-cosine, axis=1)[:, :10])
    kl = np.mean(np.sum(shares[0] * np.log(shares[0] / shares[1]), axis=1))
    return kl, 100 * np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*nearest)])


def embedder(folder: pathlib.Path, dtype: str = "float32") -> Embedder:
    """On all devices, as an evaluation, whose programs it shares then."""
    return Embedder.from_pretrained(folder, dtype=dtype)


def check(workdir: pathlib.Path, data: pathlib.Path, model: Embedder, tolerance: float):
    """Cosines and hits of an evaluation, by an Embedder and NumPy."""
    images = {
        row["path"].decode(): row["image"]
        for source in open_dataset(data / "mini_mmeb" / "images").values()
        for row in (source[n] for n in range(len(source)))
    }

    def encode(sides):
        items = [
            {"text": text.decode()} | ({"image": images[path.decode()]} if path else {})
            for text, path in sides
        ]
        return model.encode(items, prompt="")

    datasets = open_dataset(data / "mini_mmeb" / "eval")
    rows = {name: source[0] for name, source in datasets.items()}
    sides = {
        name: [(row["qry_text"], row["qry_img_path"]), *zip(row["tgt_text"], row["tgt_img_path"])]
        for name, row in rows.items()
    }
    vectors = encode([side for own in sides.values() for side in own])
    ends = np.cumsum([len(own) for own in sides.values()])
    percent = scores.read_scores(workdir)["scores"]["datasets"]
    for name, (query, *candidates) in zip(sides, np.split(vectors, ends[:-1]), strict=True):
        (result,) = results.load_results(workdir / "results" / f"mmeb-{name}.npz").values()
        expected = np.array(candidates) @ query
        assert result.gold_score[0] == pytest.approx(expected[0], abs=tolerance), name
        best = np.sort(expected)[::-1][:5]
        np.testing.assert_allclose(result.top_score[0][: len(best)], best, atol=tolerance)
        if abs(expected[0] - expected[1:].max()) > tolerance:
            assert percent[name] == 100 * (expected[0] > expected[1:].max()), name


def cosines(workdir: pathlib.Path) -> np.ndarray:
    """Those of all golds."""
    paths = sorted((workdir / "results").glob("mmeb-*.npz"))
    loaded = [result for path in paths for result in results.load_results(path).values()]
    return np.concatenate([result.gold_score for result in loaded])
