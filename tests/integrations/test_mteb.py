"""Our models in mteb: its mock tasks run, and items, instructions and metadata are as they are."""

import sys

import mteb
import numpy as np
import pytest
from mteb.mocks import mock_run
from mteb.results.task_result import TaskError
from mteb.types import PromptType
from PIL import Image

from tests.backbones.tiny_texts import write_bert
from tests.tables import for_each
from unime_jax import Embedder
from unime_jax.integrations import mteb as integration
from unime_jax.integrations import mteb_peers

# One task of each kind that calls `encode` in its own way; all of them are in a slow test.
FEW = {
    "MockRetrievalTask",
    "MockRetrievalDialogTask",
    "MockInstructionRetrieval",
    "MockSTSTask",
    "MockClusteringTask",
    "MockAny2AnyRetrievalT2I",
    "MockImageClustering",
    "MockImageTextPairClassification",
    "MockVisualSTS",
    "MockZeroShotClassification",
    "MockPairImageClassificationTask",
}
RED = Image.new("RGB", (30, 20), (255, 0, 0))
BLUE = Image.new("RGB", (24, 24), (0, 0, 255))


@pytest.fixture
def model(exported, mesh):
    return integration.load(exported, dtype="float32", mesh=mesh)


def passed(model) -> int:
    """The number of mock tasks that the model ran, none of which failed."""
    results = mteb.mock_run(model)
    ran = {name: status for name, status in results.items() if status is not None}
    wrong = {n: r.exception for n, r in ran.items() if isinstance(r, TaskError)}
    assert results.all_passed and not wrong, wrong
    return len(ran)


def test_a_choice_of_mock_tasks_runs(model, monkeypatch):
    few = [task for task in mock_run.ALL_MOCK_TASK_TEST_GRID if task.metadata.name in FEW]
    monkeypatch.setattr(mock_run, "ALL_MOCK_TASK_TEST_GRID", few)
    assert passed(model) == len(FEW)


@pytest.mark.slow
def test_all_mock_tasks_run(model, mesh, tmp_path):
    assert passed(model) == 43  # of mteb 2.26.24
    texts = integration.load(write_bert(tmp_path), dtype="float32", mesh=mesh)
    assert passed(texts) == 28


def batches(*columns):
    """Batches as mteb's loaders give them, of a column's values each."""
    return [{"id": ["a"] * 2, **batch} for batch in columns]


def task(prompt=None, name="Anything"):
    return mteb_peers.metadata(["text", "image"]).model_copy(
        update={"prompt": prompt, "name": name}
    )


def encode(model, inputs, prompt=None, side=None, **options):
    return model.encode(
        inputs,
        task_metadata=task(prompt),
        hf_split="test",
        hf_subset="default",
        prompt_type=side,
        show_progress_bar=False,
        **options,
    )


def test_items_are_texts_images_or_both(model):
    inputs = batches(
        {"text": ["a red circle", "shape"], "image": [RED, None], "title": ["", "x"]},
        {"text": ["", "left"], "image": [BLUE, RED]},
    )
    items = [{"text": "a red circle", "image": RED}, "shape", BLUE, {"text": "left", "image": RED}]
    expected = model.model.encode(items)
    found = encode(model, inputs, batch_size=2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(encode(model, batches({"image": [BLUE, RED]}))[:1], expected[2:3])
    assert encode(model, []).shape == (0, 48)

    with pytest.raises(ValueError, match=r"precision is 'int8'.*CompressionWrapper"):
        encode(model, inputs, precision="int8")
    with pytest.raises(TypeError, match="num_frames"):
        encode(model, inputs, num_frames=3)
    with pytest.raises(ValueError, match=r"Anything, split 'test'.* items from 0 on: items\[1\]"):
        encode(model, batches({"text": ["a", "b"], "image": [RED, "no.png"]}))
    with pytest.raises(ValueError, match=r"has the columns \['id', 'audio'\]"):
        encode(model, batches({"audio": [1, 2]}))


def test_instructions_are_worded_as_the_family_does(model, exported, mesh, tmp_path):
    text, picture = batches({"text": ["a cross"]}), batches({"image": [RED], "text": [""]})
    plain = {}

    def embedded(given, prompt):
        key = prompt, given is text
        if key not in plain:
            item = "a cross" if given is text else RED
            plain[key] = model.model.encode([item], prompt=prompt)
        return plain[key]

    sides = {"query": "Find shapes.", "document": "A shape."}
    query, document = PromptType.query, PromptType.document
    cases = [
        (text, "Sort it.", None, "Sort it.\n"),
        (picture, "Sort it.", None, "Sort it."),  # no line end before nothing
        (text, "Find it.", document, ""),
        (text, sides, document, "A shape.\n"),
        (text, sides, None, ""),
        (text, None, None, ""),
        (text, sides, query, "find: "),  # the folder's own comes first
    ]
    for given, prompt, side, expected in cases:
        found = encode(model, given, prompt, side)
        np.testing.assert_allclose(found, embedded(given, expected), atol=1e-5)
    off = integration.EmbedderWrapper(model.model, model.mteb_model_meta, use_instructions=False)
    np.testing.assert_allclose(encode(off, text, "Sort it."), embedded(text, ""), atol=1e-5)

    bert = integration.load(write_bert(tmp_path), dtype="float32", mesh=mesh)
    assert bert.instruction(task("Find it."), query) is None  # its family takes none
    assert bert.mteb_model_meta.modalities == ["text"]
    assert not bert.mteb_model_meta.use_instructions


def test_metadata_are_what_the_folder_tells(model, exported, mesh, tmp_path):
    meta = model.mteb_model_meta
    assert meta.framework == ["JAX"] and meta.modalities == ["text", "image"]
    assert (meta.embed_dim, meta.max_tokens, meta.n_parameters) == (48, 140, 92512)
    assert meta.memory_usage_mb == pytest.approx(4 * 92512 / 2**20)
    assert meta.training_datasets is None and meta.license is None
    assert meta.experiment_kwargs == {"dtype": "float32"}

    run = tmp_path / "my_run"
    run.mkdir()
    (run / "hf").symlink_to(exported, target_is_directory=True)
    named = integration.load(run, dtype="float32", mesh=mesh, truncate_dim=8)
    assert named.mteb_model_meta.embed_dim == 8
    assert named.mteb_model_meta.revision == meta.revision, "the same content"
    card = "---\nlicense: apache-2.0\n---\n"
    (tmp_path / "README.md").write_text(card)
    assert integration._license(tmp_path) == "apache-2.0"
    with pytest.raises(ValueError, match="device is 'cuda'"):
        integration.load(exported, device="cuda")


@for_each(
    ("module", "absent"),
    [
        ("mteb", "mteb.models.abs_encoder"),
        ("mteb_peers", "mteb.abstasks.task_metadata"),
        ("sentence_transformers", "sentence_transformers"),
    ],
)
def test_a_library_that_is_not_installed_is_named(module, absent, monkeypatch):
    monkeypatch.setitem(sys.modules, absent, None)
    monkeypatch.delitem(sys.modules, f"unime_jax.integrations.{module}", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'unime_jax\[eval\]'"):
        __import__(f"unime_jax.integrations.{module}")
    assert Embedder  # which does without
