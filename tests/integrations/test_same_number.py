"""One export, one set: our evaluation, mteb and sentence-transformers give the same numbers."""

import json
import shutil

import mteb
import numpy as np
import pytest
import pytrec_eval
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from PIL import Image
from sentence_transformers import SentenceTransformer

from experiments import evaluate as experiment
from tests.integrations.conftest import GRADES
from tests.tables import for_each
from unime_jax import files
from unime_jax.evaluation import scores
from unime_jax.evaluation.retrieval.files import open_sets
from unime_jax.evaluation.stored import results
from unime_jax.evaluation.tasks import retrieval
from unime_jax.integrations import mteb as integration
from unime_jax.integrations import mteb_peers
from unime_jax.integrations import sentence_transformers as st_integration
from unime_jax.jobs import evaluate

DEPTHS = (5, 10)  # of nDCG


def judgements():
    """Grades of documents by query."""
    relevant = {}
    for query, document, grade in GRADES:
        relevant.setdefault(f"q{query}", {})[f"d{document}"] = grade
    return relevant


class Shapes(AbsTaskRetrieval):
    """The judged corpus as a task of mteb, which is not on the hub."""

    metadata = mteb_peers.metadata(["text", "image"]).model_copy(
        update={"name": "Shapes", "category": "t2it"}
    )
    folder = None

    def load_data(self, num_proc=None, **kwargs):
        queries = [json.loads(x) for x in (self.folder / "queries.jsonl").open()]
        documents = [json.loads(x) for x in (self.folder / "corpus.jsonl").open()]
        columns = {name: [row[name] for row in documents] for name in ("title", "text")}
        columns["image"] = [Image.open(self.folder / row["image"]) for row in documents]
        data = RetrievalSplitData(
            queries=Dataset.from_list([{"id": q["_id"], "text": q["text"]} for q in queries]),
            corpus=Dataset.from_dict({"id": [row["_id"] for row in documents], **columns}),
            relevant_docs=judgements(),
            top_ranked=None,
        )
        self.dataset = {"default": {"test": data}}
        self.data_loaded = True


@pytest.fixture(scope="module")
def model_folder(exported, tmp_path_factory):
    """The export without its prompt: our evaluation uses none, mteb would."""
    folder = shutil.copytree(exported, tmp_path_factory.mktemp("model") / "hf")
    file = folder / "config_sentence_transformers.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prompts": {}}))
    return folder


def config_of(corpus, folder, **changes):
    config = experiment.get_config()
    config.backbone = str(folder)
    config.data.folder, config.data.eval = str(corpus.parent), corpus.name
    config.data.prepare.module = ""
    config.evaluation.mmeb = config.evaluation.composition = config.evaluation.images = ""
    config.update_from_flattened_dict(changes)
    return config


def by_mteb(model, corpus, folder):
    """nDCG@5, @10 of mteb, rounded to five digits as it does, and by pytrec_eval."""
    task = Shapes()
    task.folder = corpus
    (result,) = mteb.evaluate(
        model, [task], cache=None, prediction_folder=folder, show_progress_bar=False
    ).task_results
    (file,) = folder.glob("*.json")
    predicted = json.loads(file.read_text())["default"]["test"]
    measured = pytrec_eval.RelevanceEvaluator(judgements(), {"ndcg_cut.5,10"}).evaluate(predicted)
    exact = [np.mean([query[f"ndcg_cut_{k}"] for query in measured.values()]) for k in DEPTHS]
    return [result.scores["test"][0][f"ndcg_at_{k}"] for k in DEPTHS], exact


@pytest.mark.slow
def test_three_libraries_give_the_same_ndcg(corpus, model_folder, mesh, tmp_path, caplog):
    theirs = SentenceTransformer(str(model_folder), device="cpu")
    wrapped = SentenceTransformerEncoderWrapper(theirs)
    both = {"modalities": ["text", "image"]}  # of which mteb knows nothing in a local folder
    wrapped.mteb_model_meta = wrapped.mteb_model_meta.model_copy(update=both)
    ours = integration.load(model_folder, dtype="float32", mesh=mesh)

    workdirs = {name: tmp_path / name for name in ("ours", "st", "mteb", "ours_by_mteb")}
    evaluate.run(config_of(corpus, model_folder), workdirs["ours"])
    by_st = {"library": "sentence_transformers"}
    evaluate.run(config_of(corpus, model_folder, **by_st), workdirs["st"])
    config = config_of(corpus, "")
    evaluate.run(config, workdirs["mteb"], mteb_peers.peer(wrapped, batch_size=4))
    evaluate.run(config, workdirs["ours_by_mteb"], mteb_peers.peer(ours, batch_size=4))
    found = {
        name: [
            scores.read_scores(workdir)["scores"]["retrieval"][f"nDCG@{k}"] / 100 for k in DEPTHS
        ]
        for name, workdir in workdirs.items()
    }
    expected = found["ours"]
    assert 0.1 < expected[0] < expected[1] < 0.9, "neither all right nor all wrong"
    for name, number in found.items():
        assert number == pytest.approx(expected, abs=1e-6), name
    for name, model in (("m_ours", ours), ("m_st", wrapped)):
        rounded, exact = by_mteb(model, corpus, tmp_path / name)
        assert exact == pytest.approx(expected, abs=1e-6), name
        assert rounded == pytest.approx(expected, abs=6e-6), name

    # The embeddings, too
    (data,) = open_sets(files.as_path(corpus), {})
    items = retrieval.Task(data).open(lambda path: b"").items
    peers = [
        st_integration.encoder(theirs, batch_size=2),
        mteb_peers.encoder(wrapped, batch_size=3),
        mteb_peers.encoder(ours, batch_size=8),
    ]
    vectors = [encode(items) for encode in peers]
    own = [{"text": i.text, "image": [m.data for m in i.media]} for i in items]
    for embeddings in vectors:
        np.testing.assert_allclose(embeddings, ours.model.encode(own), atol=1e-4)

    # What is left: which model, by what; the report says so, and results are not mixed
    provenance = json.loads((workdirs["st"] / "results" / "evaluation_of.json").read_text())
    assert provenance["library"] == "sentence_transformers" and "model.safetensors" in str(
        provenance["model"]
    )
    assert set(provenance["versions"]) == {"sentence-transformers", "transformers", "torch"}
    page = (workdirs["mteb"] / "report.html").read_text()
    assert f"Evaluation of {wrapped.mteb_model_meta.name}" in page and mteb.__version__ in page
    with pytest.raises(ValueError, match="another evaluation. Changed since:\n  library: "):
        evaluate.run(config_of(corpus, model_folder), workdirs["st"])
    assert results.load_sets(workdirs["st"] / "results" / "retrieval-shapes.npz")


@for_each(
    ("changes", "message"),
    [
        ({"late_fusion": True}, "late_fusion=True is for peers"),
        ({"library": "sentence_transformers", "dtype": "int8"}, "dtype='int8': config.library="),
        ({"library": "mteb"}, "library is 'mteb'; use one of 'unime_jax', 'sentence_transformers'"),
        ({"library": "sentence_transformers", "backbone": "."}, "has no modules.json"),
        ({"library": "sentence_transformers", "revision": "main"}, "revision is 'main'"),
    ],
)
def test_settings_of_a_peer_are_checked(corpus, exported, tmp_path, changes, message):
    config = config_of(corpus, exported)
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        evaluate.run(config, tmp_path / "workdir")
    assert not (tmp_path / "workdir" / "evaluation.json").exists()
