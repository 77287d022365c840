"""Mining negatives for rows of texts and images, and training on them."""

import json
import pickle
import shutil

import jax
import numpy as np
import pytest

from experiments import mine as experiment
from experiments import own
from tests.backbones.tiny_folders import write_folder
from tests.jobs.tiny_run import metrics
from tests.models.oracle import TEXT, VISION, pair_of, picture
from unime_jax import config_reader, main
from unime_jax.config import DataConfig
from unime_jax.data.embedding_store import item_id, open_embeddings
from unime_jax.data.mined_rows import DataChangedError
from unime_jax.data.mined_table import Writer, open_mined
from unime_jax.data.mixture import mixture
from unime_jax.data.schema import to_example
from unime_jax.jobs import mine, train
from unime_jax.training import inputs

WORDS = ("red", "blue", "green", "small", "large", "round")
RATIO = 0.999  # random weights make all vectors alike


def rows_of(source):
    """Twelve rows: a query of words comes twice, a target thrice; queries that are images."""
    texts = [
        {
            "query": f"a {word} thing",
            "positive": f"{source} {word} it is",
            "negatives": [f"not {word}", {"image": f"images/{number}.png"}],
        }
        for number, word in enumerate(WORDS)
    ]
    texts[1]["query"] = texts[0]["query"]
    images = [
        {"query": {"text": "what?", "image": f"images/{n}.png"}, "positive": {"text": f"{n % 4}"}}
        for n in range(6)
    ]
    return texts + images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data of two sources, and a model."""
    folder = tmp_path_factory.mktemp("mining")
    (folder / "pairs" / "images").mkdir(parents=True)
    for number in range(6):
        (folder / "pairs" / f"images/{number}.png").write_bytes(picture(28, 28, number))
    for source in ("b", "a"):
        lines = "".join(json.dumps(row) + "\n" for row in rows_of(source))
        (folder / "pairs" / f"{source}.jsonl").write_text(lines)
    (folder / "model").mkdir()
    pair_of(write_folder(folder / "model", vision=VISION, text=TEXT))
    return folder


def make_config(folder, **changes):
    config = experiment.get_config()
    config.backbone = str(folder / "model")
    config.max_length = 128
    config.batch_size = 8
    config.data.folder = str(folder)
    config.data.train = "pairs"
    config.search.ratio = RATIO
    config.search.negatives = 4
    config.search.ranks = (2, 6)
    config.search.rows = 5
    config.output.block = 16
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def mined(folder, tmp_path_factory):
    """A table, mined on eight devices. Read-only."""
    workdir = tmp_path_factory.mktemp("mined")
    mine.run(make_config(folder), workdir)
    return workdir


def searched_again(mined, workdir):
    """A work directory with vectors, whose table is to be made."""
    for side in ("queries", "candidates"):
        shutil.copytree(mined / side, workdir / side)
    return workdir


def blocks(workdir):
    return {file.name: file.read_bytes() for file in (workdir / "negatives").iterdir()}


def training_data(folder, mined, **changes):
    data = own.get_config().data
    data.folder, data.train, data.mined = str(folder), "pairs", str(mined)
    data.update(changes)
    return config_reader.read(DataConfig, data.to_dict())


def test_negatives_are_the_ranks_of_all_candidates_below_the_positive(folder, mined):
    table = open_mined(mined)
    queries, candidates = (open_embeddings(mined / side) for side in ("queries", "candidates"))
    plain = inputs.open_rows(training_data(folder, ""))
    # Workers get sources pickled.
    shipped = pickle.loads(pickle.dumps(inputs.open_rows(training_data(folder, mined))))
    examples = {
        name: [to_example(name, rows[n], str(n)) for n in range(len(rows))]
        for name, rows in plain.items()
    }
    every = [example for of_source in examples.values() for example in of_source]
    vectors = candidates.at(candidates.rows_of(table.ids)).astype(np.float64)
    filtered = 0
    for name, of_source in examples.items():
        for n, example in enumerate(of_source):
            query = queries.vector_of(example.query).astype(np.float64)
            scores = (vectors @ query).astype(np.float32)
            same = [e for e in every if e.query.identity == example.query.identity]
            never = {item_id(e.positive) for e in same} | {item_id(example.query)}
            never |= {item_id(item) for item in example.negatives}
            positive = scores[table.ids.tolist().index(item_id(example.positive))]
            kept = [
                i
                for i in np.lexsort((np.arange(len(scores)), -scores))
                if scores[i] <= np.float32(positive * RATIO) and table.ids[i] not in never
            ]
            filtered += len(kept) < len(scores) - len(never)
            chosen = kept[1:5]
            row = table.row(name, n)
            assert row["number"].tolist() == chosen + [-1] * (4 - len(chosen))
            assert row["score"][: len(chosen)].tolist() == scores[chosen].tolist()
            assert row["positive"] == positive
            # Joined, they are read where they stand, images too.
            full = to_example(name, shipped[name][n], str(n))
            assert full.negatives[: len(example.negatives)] == example.negatives
            got = [item_id(item) for item in full.negatives[len(example.negatives) :]]
            assert got == table.ids[chosen].tolist()
            if not example.negatives and chosen:
                assert full.scores == (positive, *scores[chosen])
    assert filtered > 3 and any(len(e.negatives) for e in every)


def test_the_table_is_the_same_on_any_mesh_and_by_any_processes(
    folder, mined, tmp_path, monkeypatch
):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    workdir, put = searched_again(mined, tmp_path / "run"), Writer.put

    def dies_at_the_third(self, number, rows):
        if len(blocks(workdir)) == 2:
            raise KeyboardInterrupt
        put(self, number, rows)

    monkeypatch.setattr(jax, "process_count", lambda: 2)  # the second begins, and is killed
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(Writer, "put", dies_at_the_third)
    config = make_config(folder, **{"search.columns": 8})
    with pytest.raises(KeyboardInterrupt):
        mine.run(config, workdir)
    monkeypatch.undo()
    before = blocks(workdir)
    assert [*sorted(before)] == ["000001.npy", "000003.npy"]
    with pytest.raises(ValueError, match="is not complete; run the command"):
        open_mined(workdir)
    other = make_config(folder, **{"search.ratio": 0.5})
    with pytest.raises(ValueError, match="provenance.search.ratio: 0.999 -> 0.5") as error:
        mine.run(other, workdir)
    assert main.says_it_all(error.value)
    (workdir / "negatives" / "000001.npy").write_bytes(before["000001.npy"][:50])  # a torn copy
    mine.run(config, workdir)
    assert blocks(workdir) == blocks(mined)
    assert open_mined(workdir).content == open_mined(mined).content


def test_an_approximate_search_recalls_the_exact_one(folder, mined, tmp_path):
    """By `approx_max_k`, which CPUs compute exactly; on eight devices and several blocks."""
    workdir = searched_again(mined, tmp_path / "run")
    config = make_config(folder, **{"search.method": "approximate", "search.columns": 16})
    mine.run(config, workdir)
    exact, approximate = open_mined(mined), open_mined(workdir)
    shared = total = 0
    for source in ("a", "b"):
        for n in range(12):
            of_exact, own = (table.row(source, n)["number"] for table in (exact, approximate))
            shared += len(np.intersect1d(of_exact[of_exact >= 0], own[own >= 0]))
            total += (of_exact >= 0).sum()
    assert total > 40 and shared >= 0.95 * total
    with pytest.raises(ValueError, match='provenance.search.method: "approximate" -> "exact"'):
        mine.run(make_config(folder), workdir)


def test_a_guide_leaves_out_what_it_scores_above_the_positive(folder, mined, tmp_path):
    """The guide's vectors are the model's own, so that its margin is one more limit."""
    changes = {"search.ratio": None, "search.ranks": (1, 6), "search.negatives": 6}
    margin = 5e-4
    tables = {}
    for name, more in (
        ("plain", {}),
        ("guided", {"search.guide": str(mined), "search.guide_margin": margin}),
    ):
        workdir = searched_again(mined, tmp_path / name)
        mine.run(make_config(folder, **changes, **more), workdir)
        table = open_mined(workdir)
        tables[name] = [table.row(source, n) for source in ("a", "b") for n in range(12)]
    dropped = 0
    for plain, guided in zip(tables["plain"], tables["guided"], strict=True):
        kept = plain["score"] <= plain["positive"] - margin
        assert guided["number"][guided["number"] >= 0].tolist() == plain["number"][kept].tolist()
        dropped += 6 - kept.sum()
    assert dropped
    other = tmp_path / "other"
    shutil.copytree(mined / "queries", other / "queries")
    config = make_config(folder, **{"search.guide": str(other)})
    with pytest.raises(ValueError, match="config.search.guide: .*has no embeddings"):
        mine.run(config, tmp_path / "run")


def test_a_pool_of_a_source_or_a_corpus_named_apart(folder, mined, tmp_path):
    changes = {"search.pool": "source", "search.fill": True}
    changes |= {"search.negatives": 30, "search.ranks": (1, 30)}  # more than a source has
    workdir = searched_again(mined, tmp_path / "source")
    mine.run(make_config(folder, **changes), workdir)
    filled = 0
    for source in ("a", "b"):
        targets = [row["positive"] for row in rows_of(source)]
        targets += [item for row in rows_of(source) for item in row.get("negatives", [])]
        texts = {item if isinstance(item, str) else item.get("text", "") for item in targets}
        joined = inputs.open_rows(training_data(folder, workdir, mined_use="instead"))[source]
        for n in range(12):
            negatives = to_example(source, joined[n], str(n)).negatives
            assert {item.text for item in negatives} <= texts
            assert len(negatives) in (0, 30)  # filled, where a row has any
            filled += len({*map(item_id, negatives)}) < len(negatives)
    assert filled

    lines = [{"text": "an item"}, {"text": "both", "image": "images/2.png"}, {"text": "x"}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "corpus.jsonl").write_text(text.replace("images/", "pairs/images/"))
    changes = {"data.corpus": "corpus.jsonl", "search.ratio": None, "search.ranks": (1, 4)}
    shutil.copytree(mined / "queries", tmp_path / "corpus" / "queries")
    mine.run(make_config(folder, **changes), tmp_path / "corpus")
    rows = inputs.open_rows(training_data(folder, tmp_path / "corpus", mined_use="instead"))
    for n in range(12):
        negatives = to_example("a", rows["a"][n], str(n)).negatives
        assert sorted(item.text for item in negatives) == ["an item", "both", "x"]
        assert [len(item.media) for item in sorted(negatives, key=lambda i: i.text)] == [0, 1, 0]


def test_training_on_mined_negatives(
    folder, mined, tmp_path, workdir, plain_step, one_device, monkeypatch
):
    monkeypatch.setattr("unime_jax.jobs.export.write", lambda *_: None)
    data = shutil.copytree(folder / "pairs", tmp_path / "data" / "pairs").parent
    config = own.get_config()
    config.backbone = str(folder / "model")
    config.data.folder, config.data.train, config.data.mined = str(data), "pairs", str(mined)
    config.data.negatives = 3
    config.batch_size = config.chunk_size = 8
    config.steps, config.log_every = 2, 1
    config.optimizer.warmup_steps = 1
    config.optimizer.schedule = "constant"
    config.data.cluster_size = 4
    drawn = []

    def mixed(*arguments, **options):
        drawn.append(options)
        return mixture(*arguments, **options)

    monkeypatch.setattr("unime_jax.data.loader.mixture", mixed)
    train.run(config, workdir)
    lines = metrics(workdir)
    assert len(lines) == 2 and lines[0]["dropped_negatives"] > 0
    # Its batches are of clusters, which its rows' similarities speak for.
    order, record = (workdir / name for name in ("clusters.npy", "clusters.json"))
    clusters = np.load(order)
    for name, rows in zip("ab", np.split(clusters, 2), strict=True):
        assert sorted(rows) == list(range(12))
        assert (drawn[0]["clusters"][name] == rows).all() and drawn[0]["cluster_size"] == 4
    for measured in json.loads(record.read_text())["measured"].values():
        assert measured["neighbours"] > measured["neighbours_by_chance"]
        assert measured["similarity"] > measured["similarity_by_chance"] - 0.01
    # A resumed run has the same table, wherever it lies, and no other; clusters that are lost are
    # made again, and no others are taken.
    moved = shutil.copytree(mined, tmp_path / "moved")
    config.steps, config.data.mined = 3, str(moved)
    order.write_bytes(order.read_bytes()[:-8])
    train.run(config, workdir)
    assert (np.load(order) == clusters).all()
    record.unlink()
    config.steps = 4
    with monkeypatch.context() as patch:
        patch.setattr(
            "unime_jax.data.clusters.partition", lambda edges, *_: np.arange(12, dtype=np.int32)
        )
        with pytest.raises(ValueError, match="belongs to another data: .*clusters of rows"):
            train.run(config, workdir)
    again = tmp_path / "again"
    mine.run(make_config(folder, **{"search.ratio": 0.9}), searched_again(mined, again))
    config.steps, config.data.mined = 4, str(again)
    with pytest.raises(ValueError, match="belongs to another data: .*mined negatives"):
        train.run(config, workdir)
    config.data.mined = str(moved)
    config.data.negatives = config.data.cluster_size = 0
    with pytest.raises(ValueError, match="none of the mined negatives would be read"):
        train.run(config, workdir)
    # Data that changed are refused: by a sample at the start, and each row as it is read.
    config.data.negatives = 3
    file = data / "pairs" / "a.jsonl"
    file.write_text(file.read_text().replace("a red it is", "another"))
    with pytest.raises(ValueError, match="config.data.train: row 0 of source 'a' is not"):
        train.run(config, workdir)
    file.write_text(file.read_text() + file.read_text().splitlines()[0] + "\n")
    with pytest.raises(DataChangedError, match=r"mine again:\n  a: 12 rows -> 13"):
        inputs.open_rows(training_data(data, mined))
