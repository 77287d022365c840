"""Stage 1 from end to end: what it trains and reads, what it leaves, and stage 2 from there."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file
from transformers import LlavaOnevisionForConditionalGeneration

from data_pipelines import texts
from data_pipelines.mini_nli.content import triples
from experiments import evaluate as evaluate_recipe
from experiments import llave, stage1, stage2
from tests.backbones.tiny_folders import write_folder
from tests.jobs import tiny_run
from tests.models.oracle import TEXT, VISION, pair_of
from tests.multihost import launch
from unime_jax import config, config_reader
from unime_jax.batch import Item
from unime_jax.data import embedding_store_writer
from unime_jax.data.embedding_store import open_embeddings
from unime_jax.data.settings import Bucket
from unime_jax.evaluation import scores
from unime_jax.jobs import evaluate, export, train
from unime_jax.training import evaluations, setup, taught

WORDS = 24  # width of the teacher


def teach(sentences) -> np.ndarray:
    """A teacher for whom sentences are alike that have words in common."""
    rng = np.random.default_rng(0)
    words: dict[str, np.ndarray] = {}
    vectors = [
        sum(words.setdefault(word, rng.normal(size=WORDS)) for word in sentence.split())
        for sentence in sentences
    ]
    unit = [vector / np.linalg.norm(vector) for vector in vectors]
    return np.stack(unit).astype(np.float32)


@pytest.fixture(scope="module")
def sentences(data, made_once) -> list[str]:
    """Triples and their teacher, in the folder of the session's data."""
    train_rows, test_rows = triples(0, "train", 48), triples(0, "test", 12)
    sentences = sorted({sentence for row in (*train_rows, *test_rows) for sentence in row})

    def make(folder: pathlib.Path) -> None:
        texts.write(folder / "texts", train_rows, test_rows)
        embedding_store_writer.write(folder / "teacher", sentences, teach(sentences))

    assert made_once("data/mini_nli", make) == data / "mini_nli"
    return sentences


def make_config(data: pathlib.Path, variant: str = "mini") -> ConfigDict:
    made = stage1.get_config(variant)
    made.data.folder = str(data)
    made.data.prepare.module = ""
    made.init = "pretrained"
    made.steps = 12
    made.batch_size = made.chunk_size = 16
    made.optimizer.warmup_steps = 1
    made.optimizer.learning_rate = 1e-2
    made.evaluation.rows = 64
    made.data.buckets = (Bucket(tokens=112, tiles=0),)
    made.export.verify = False
    return made


@pytest.fixture(scope="module")
def distilled(data, sentences, tmp_path_factory) -> pathlib.Path:
    """The work directory of a finished run. Read-only."""
    workdir = tmp_path_factory.mktemp("stage1")
    train.run(make_config(data), workdir)
    return workdir


def test_held_out_texts_come_closer_to_the_teacher(distilled):
    before, after = agreement(distilled)
    assert after["kl"] < 0.6 * before["kl"] and after["overlap"] > before["overlap"] + 5
    report = (distilled / "report.html").read_text()
    assert "Same nearest text" in report and "hit@1" not in report
    assert "Held-out KL" in report and f"{after['overlap']:.1f} %" in report
    logged = tiny_run.metrics(distilled)
    assert len(logged) == 12 and {"teacher_entropy", "nearest_agreement"} <= logged[0].keys()


@pytest.mark.slow
def test_the_whole_model_is_evaluated_while_its_language_component_is_distilled(
    data, distilled, tmp_path, monkeypatch
):
    """The tower is there for evaluations alone: losses stay as they are."""
    monkeypatch.setattr(export, "write", lambda *_: None)
    made = make_config(data)
    made.evaluation.every = 5
    made.checkpoint.keep_best = True
    train.run(made, tmp_path)
    losses, expected = (
        [line["loss"] for line in tiny_run.metrics(run)] for run in (tmp_path, distilled)
    )
    assert losses == expected
    scores = evaluations.read(tmp_path)
    assert list(scores) == [5, 10, 12]
    overlaps = [evaluations.overall(scores[step]) for step in scores]
    assert overlaps[-1] == agreement(distilled)[1]["overlap"] and len(set(overlaps)) > 1
    best = evaluations.best_step(scores, scores)
    assert {best, 12} <= set(tiny_run.checkpoint_steps(tmp_path))


def test_job_evaluate_has_the_scores_of_the_run_after_training(data, distilled, tmp_path):
    trained, made = make_config(data), evaluate_recipe.get_config("texts")
    made.backbone = str(distilled)
    made.data.folder, made.data.prepare.module = str(data), ""
    evaluate.run(made, tmp_path)
    assert made.data.suffix == trained.data.suffix and made.evaluation.texts
    found = scores.read_scores(tmp_path)["scores"]["distillation"]
    assert found == pytest.approx(agreement(distilled)[1], rel=1e-4)

    # The same texts in columns that have to be named
    made.evaluation.texts = str(tmp_path / "renamed")
    (tmp_path / "renamed").mkdir()
    keys = ("one", "like", "unlike")
    rows = [dict(zip(keys, row, strict=True)) for row in triples(0, "test", 12)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "renamed" / "test.jsonl").write_text(lines)
    with pytest.raises(ValueError, match="config.evaluation.texts: source 'test'"):
        evaluate.run(made, tmp_path / "named")
    made.data.columns = {"query": "one", "positive": "like", "negatives": "unlike"}
    evaluate.run(made, tmp_path / "named")
    named = scores.read_scores(tmp_path / "named")["scores"]["distillation"]
    assert named == pytest.approx(found, rel=1e-4)


@pytest.mark.slow
def test_two_processes_distil_as_one_does(data, distilled, tmp_path):
    """A text that both have read counts once."""
    launch.finish(make_config(data), tmp_path / "run", 2, experiment="experiments/stage1.py")
    found, expected = tiny_run.metrics(tmp_path / "run"), tiny_run.metrics(distilled)
    assert len(found) == len(expected) == 12
    for line, other in zip(found, expected):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4), line["step"]
        assert line["teacher_entropy"] == pytest.approx(other["teacher_entropy"], rel=1e-5)
    assert [line["duplicate_items"] for line in found] != [
        line["duplicate_items"]
        for line in expected  # or the test would show nothing
    ]
    for side, other in zip(agreement(tmp_path / "run"), agreement(distilled)):
        assert side["kl"] == pytest.approx(other["kl"], rel=1e-3)


def agreement(workdir):
    scores = json.loads((workdir / "evaluation.json").read_text())
    return [scores[side]["distillation"] for side in ("before", "after")]


@pytest.mark.slow
def test_the_loss_as_printed_trains_too(data, sentences, tmp_path):
    train.run(make_config(data, "paper_literal"), tmp_path)
    before, after = agreement(tmp_path)
    assert after["kl"] < 0.6 * before["kl"]


def test_only_the_language_model_is_there_and_exported_again(distilled, data, tmp_path):
    """The tower is neither trained nor made while training; the export has it as it began."""
    table = (distilled / "parameters.txt").read_text()
    assert "language_model.layers.mlp.up_proj.kernel" in table and "vision_tower" not in table

    # The tower stays as it was
    made = make_config(data)
    settings = config_reader.read(config.TrainConfig, made.to_dict())
    mesh = setup.make_mesh(settings)
    with jax.set_mesh(mesh):
        initial = setup.set_up(settings, mesh).initial()
        exported = setup.set_up(
            config_reader.read(config.TrainConfig, from_stage1(made, distilled).to_dict()), mesh
        ).initial()
    initial, exported = jax.device_get((initial, exported))
    changed = {path for path in initial if np.any(initial[path] != exported[path])}
    assert changed and all(path.startswith("language_model.") for path in changed)
    assert initial.keys() - changed >= {"image_newline", "multi_modal_projector.linear_1.kernel"}
    model, info = LlavaOnevisionForConditionalGeneration.from_pretrained(
        distilled / "hf", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]

    # The export job makes the same again.
    shutil.copytree(distilled / "checkpoints", tmp_path / "checkpoints")
    export.run(make_config(data), tmp_path)
    first, again = (load_file(run / "hf" / "model.safetensors") for run in (distilled, tmp_path))
    assert first.keys() == again.keys()
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)


def from_stage1(made: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
    made = made.copy_and_resolve_references()
    made.init_from = str(workdir)
    return made


def test_llave_starts_there_and_leaves_a_frozen_tower_as_it_was(
    data, distilled, tmp_path, plain_step
):
    """LLaVE's options, as far as they differ from stage 2's."""
    made = from_stage1(tiny_run.make_config(data), distilled)
    made.steps = 2
    made.data.buckets = made.data.buckets[-1:]  # one: half as much to compile
    recipe = llave.get_config("llava_onevision_7b")
    made.loss = recipe.loss
    made.trainable, made.optimizer.schedule = recipe.trainable, recipe.optimizer.schedule
    made.optimizer.weight_decays = recipe.optimizer.weight_decays
    train.run(made, tmp_path)
    settings = config_reader.read(config.TrainConfig, tiny_run.make_config(data).to_dict())
    started = load_file(distilled / "hf" / "model.safetensors")
    ended = load_file(tmp_path / "hf" / "model.safetensors")
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    mesh = setup.make_mesh(settings)
    with jax.set_mesh(mesh):
        random = setup.set_up(settings, mesh).initial()
    random = np.asarray(random["language_model.layers.mlp.up_proj.kernel"])[1].T
    moved = np.abs(ended[name] - started[name]).max()
    assert 0 < moved < 0.1 * np.abs(random - started[name]).max()
    assert str(distilled.name) in (tmp_path / "hf" / "README.md").read_text()
    changed = {name for name in started if started[name].tobytes() != ended[name].tobytes()}
    assert not any("vision_tower" in name for name in changed)
    assert any("language_model" in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed)


@pytest.mark.slow
def test_lora_on_pretrained_weights(data, sentences, tmp_path, plain_step):
    """LoRA on the decoder of a folder with weights, of which only the decoder's are read."""
    folder = tmp_path / "folder"
    folder.mkdir()
    write_folder(folder, vision=VISION, text=TEXT)
    pair_of(folder)
    made = make_config(data)
    made.steps = 3
    made.backbone = str(folder)
    made.init = "pretrained"
    made.trainable = ((r".*\.lora_(a|b)", True), (".*", False))
    made.lora.rank, made.lora.dora = 4, False
    made.lora.targets = ((r"language_model\..*_proj", True), (".*", False))
    made.optimizer.learning_rate = 1e-2
    made.data.buckets = (Bucket(tokens=160, tiles=0),)
    made.evaluation.texts = ""
    made.export.adapter = True
    train.run(made, tmp_path / "run")
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / "run" / "hf" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if np.any(before[name] != after[name])}
    assert len(changed) == 3 * 7
    assert all("language_model" in name and "_proj.weight" in name for name in changed)
    assert (tmp_path / "run" / "hf_adapter" / "adapter_config.json").exists()


def test_a_text_without_teacher_is_listed_and_stops_the_run(data, sentences, plain_step, tmp_path):
    known = [sentence for number, sentence in enumerate(sentences) if number % 6]
    embedding_store_writer.write(data / "half", known, teach(known))
    made = make_config(data)
    made.data.teacher = "half"
    made.evaluation.texts = ""
    with pytest.raises(ValueError, match="unusable"):
        train.run(made, tmp_path)
    first = json.loads((tmp_path / "quarantine.jsonl").read_text().splitlines()[0])
    assert "no vector" in first["reason"]


DO_NOT_FIT = [
    ({"trainable": ((".*", True),)}, "config.trainable also names"),
    ({"data.teacher": ""}, "distillation needs a teacher"),
    ({"infonce_steps": 5}, "no InfoNCE"),
    ({"loss": stage2.get_config().loss, "data.teacher": ""}, "only distillation"),
    ({"init_from": "/nowhere"}, "no exported model in /nowhere/hf"),
    ({"loss.objective": "kl"}, "use one of contrastive, distillation"),
]


def test_what_does_not_fit_is_said_at_once(data, sentences, tmp_path):
    for change, message in DO_NOT_FIT:
        made = make_config(data)
        for key, value in change.items():
            group, _, name = key.rpartition(".")
            (made[group] if group else made)[name] = value
        with pytest.raises(ValueError, match=message):
            train.run(made, tmp_path)
        assert not (tmp_path / "checkpoints").exists(), change

    # The student is the whole model without its tower. By the same paths, with the same
    # values; and its rows carry the teacher's vectors.
    made = make_config(data)
    settings = config_reader.read(config.TrainConfig, made.to_dict())
    mesh = setup.make_mesh(settings)
    with jax.set_mesh(mesh):
        whole = setup.set_up(settings, mesh)
        teacher = open_embeddings(data / "mini_nli" / "teacher")
        student = taught.student(whole, teacher)
        both = whole.initial(), student.initial()
    assert both[1].keys() == {p for p in both[0] if p.startswith("language_model.")}
    for path, leaf in both[1].items():
        np.testing.assert_array_equal(leaf, both[0][path], err_msg=path)
    item = Item(sentences[0])
    row = student.preprocess(item)
    np.testing.assert_array_equal(row.teacher, teach(sentences)[0])
    assert len(row.tokens) > len(whole.preprocess(item).tokens)  # the instruction
