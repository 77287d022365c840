"""Scores of several runs under common columns, and changes that can be trusted."""

import dataclasses
import json

import numpy as np
import pytest

from tests.evaluation.side_by_side.tiny_runs import (
    write_evaluation,
    write_scores_of,
    write_training,
)
from tests.evaluation.tiny_report import TABLE
from unime_jax.evaluation import scores
from unime_jax.evaluation.benchmarks import composition_rules, mmeb_v2_video, published
from unime_jax.evaluation.benchmarks.composition_rules import RuleResult
from unime_jax.evaluation.retrieval import scores as retrieval_scores
from unime_jax.evaluation.side_by_side import comparison, rows
from unime_jax.evaluation.side_by_side.runs import Group, read_run
from unime_jax.evaluation.stored import results as results_lib
from unime_jax.evaluation.tasks.captions import CaptionsResult
from unime_jax.evaluation.tasks.retrieval import RetrievalResult


def compare(groups, baseline="", chosen=None, models=(), table=TABLE):
    made = [Group(name, tuple(map(read_run, workdirs))) for name, workdirs in groups.items()]
    return comparison.compare(
        made,
        chosen=chosen or {},
        baseline=baseline,
        published=published.read(models),
        tables=dict.fromkeys(groups, table),
    )


def line(compared, name):
    return next(line for line in compared.lines if line.name == name)


def test_changes_have_the_interval_of_a_paired_bootstrap(tmp_path, results):
    clip = write_evaluation(tmp_path / "clip", results[0])
    ours = write_training(tmp_path / "ours", *results)
    chosen = {"seen": ["digits", "scenes"]}
    compared = compare({"clip": [clip], "ours": [ours]}, "clip", chosen)
    cells = line(compared, "ours").cells
    assert all(cell.change is None for cell in line(compared, "clip").cells.values())

    # Each draw takes the same rows of both runs, and datasets are drawn by themselves.
    generator = np.random.default_rng(7)
    draws = {}
    for name in TABLE:
        hits = [100.0 * (side[name].rank == 0) for side in results]
        drawn = generator.integers(0, 20, (4000, 20))
        draws[name] = (hits[1] - hits[0])[drawn].mean(axis=1)
    means = {
        ("datasets", "scenes"): ["scenes"],
        ("All",): list(TABLE),
        ("IND",): ["digits", "scenes"],
        ("chosen", "seen"): ["digits", "scenes"],
        ("meta_mean",): list(TABLE),  # a dataset a meta task
    }
    for column, names in means.items():
        expected = np.percentile(np.mean([draws[n] for n in names], axis=0), (2.5, 97.5))
        np.testing.assert_allclose(cells[column].interval, expected, atol=4, err_msg=str(column))
        change = np.mean([results[1][n].hit_at_1 - results[0][n].hit_at_1 for n in names])
        assert cells[column].change == pytest.approx(change)

    # The same rows drawn for both: no change has no width.
    again = write_evaluation(tmp_path / "again", results[0])
    same = line(compare({"clip": [clip], "again": [again]}, "clip"), "again").cells
    assert {cell.interval for cell in same.values()} == {(0.0, 0.0)}


def test_what_is_not_comparable_has_no_change_and_the_reader_is_told(tmp_path, results):
    clip = write_evaluation(tmp_path / "clip", results[0], not_run={"winoground": "gated"})
    # Other rows under the same names.
    other = {
        name: dataclasses.replace(ranking, ids=tuple(f"other {i}" for i in ranking.ids))
        for name, ranking in results[1].items()
    }
    other = write_evaluation(tmp_path / "other", other, instructions="qwen3_vl")
    # Fewer datasets: averages of their own.
    fewer = {name: results[1][name] for name in ("digits", "scenes")}
    fewer = write_evaluation(tmp_path / "fewer", fewer)
    # Results of another evaluation, and damaged ones.
    stale = write_evaluation(tmp_path / "stale", results[1])
    sides = scores.read_scores(stale)["scores"]
    sides["datasets"]["digits"] += 5
    scores.write_scores(stale, "scores", sides)
    (stale / "results" / "mmeb-scenes.npz").write_bytes(b"no zip")
    groups = {"clip": [clip], "other": [other], "fewer": [fewer], "stale": [stale]}
    compared = compare(groups, "clip")
    assert not any(cell.change is not None for cell in line(compared, "other").cells.values())
    headings = list(compared.groups)
    assert headings[0] == "averages of 4 datasets, colours ..." and len(headings) == 4
    assert line(compared, "fewer").cells.keys().isdisjoint(line(compared, "clip").cells)
    changed = line(compared, "stale").cells
    datasets = headings[1]
    assert changed[datasets, "regions"].interval and changed[datasets, "regions"].change > 0
    assert changed[datasets, "digits"].change and changed[datasets, "digits"].interval is None
    said = " ".join(compared.remarks)
    for words in (
        "other was evaluated on other rows of colours, digits, regions and 1 more than clip",
        "results of digits are not those of its evaluation.json",
        "mmeb-scenes.npz cannot be read",
        "clip: not run: winoground (gated)",
    ):
        assert words in said, words
    with pytest.raises(ValueError, match="'both': its runs were evaluated on different data: only"):
        compare({"both": [clip, fewer]})
    with pytest.raises(ValueError, match="no line is called 'x' to be the baseline; there are cli"):
        compare(groups, "x")


def test_kinds_that_nobody_knows_are_columns_under_their_names(tmp_path):
    for name, value in (("a", 0.5), ("b", 0.25)):
        kinds = {
            "clustering": {"birds": 100 * value},
            "sorting": {"birds": {"v_measure": value, "items": 40}},
            "new_kind": {"deep": {"er": {"score": 7 * value, "note": "text", "flag": True}}},
            "captions": {"tiny": {"t2i": {"R@1": 50.0, "intervals": {"R@1": [40, 60]}}}},
            "composition": {"swap": 40.0, "set/macro": 10.0},
        }
        (tmp_path / name).mkdir()
        kinds["captions"]["tiny"]["t2i"] |= {"R@5": 60.0, "R@10": 70.0}
        kinds["captions"]["tiny"] |= {"i2t": kinds["captions"]["tiny"]["t2i"]}
        kinds["captions"]["tiny"] |= {"images": 2, "captions": 4}
        write_scores_of(tmp_path / name, {}, {}, "scores", **kinds)
    compared = compare({"both": [tmp_path / "a", tmp_path / "b"]}, table={})
    cells = line(compared, "both").cells
    assert cells["sorting", "birds", "v_measure"].mean == 0.375
    assert cells["sorting", "birds", "v_measure"].spread == pytest.approx(0.25 / 2**0.5)
    assert cells["clustering", "birds"].mean == 37.5
    assert ("new_kind", "deep", "er", "score") in cells and len(compared.groups["new_kind"]) == 1
    assert compared.digits(("sorting", "birds", "v_measure")) == 3
    assert compared.digits(("sorting", "birds", "items")) == 0
    assert cells["composition",].mean == 40.0  # no mean over benchmarks
    assert not any("intervals" in column for column in cells)


def test_published_rows_stand_only_beside_the_same_benchmark(tmp_path):
    percent = dict.fromkeys(scores.MMEB_V1, 50.0)
    table = scores.MMEB_V1
    captions = {way: {"R@1": 30.0, "R@5": 60.0, "R@10": 70.0} for way in ("t2i", "i2t")}
    karpathy = captions | {"images": 5000, "captions": 25000}
    mteb = captions | {"images": 5000, "captions": 24809}
    full = write_scores_of(
        tmp_path / "full", percent, table, "scores", captions={"coco_karpathy": karpathy}
    )
    models = ["UniME LLaVA-1.6", "LLaVE-7B", "GME-Qwen2-VL-7B"]
    compared = compare({"full": [full]}, models=models, table=table)
    unime = line(compared, "UniME LLaVA-1.6")
    assert (unime.runs, unime.cells["meta_mean",].mean) == (0, 66.6)
    assert unime.cells["All",].derived and round(unime.cells["All",].mean, 1) == 63.6
    assert unime.cells["datasets", "N24News"].mean == 79.5
    assert unime.cells["captions", "coco_karpathy", "t2i", "R@1"].mean == 53.7
    assert any("mean of 4 metas" in source for source in unime.sources)
    assert not any("SugarCrepe" in source for source in unime.sources)
    llave = line(compared, "LLaVE-7B")
    assert llave.cells["All",].mean == 70.3 and ("captions", "coco_karpathy") not in llave.cells

    # Generated data, other numbers of rows, or a part of MMEB.
    for number, (config, values, words) in enumerate(
        [
            ({"evaluation": {"mmeb": "mini_mmeb/eval"}}, percent, "MiniMMEB, which is generated"),
            ({"evaluation": {"limit": 100}}, percent, "only the first 100 rows"),
            ({}, {"N24News": 50.0}, "it has no ImageNet-1K, HatefulMemes, VOC2007 and 32 more"),
        ]
    ):
        workdir = tmp_path / str(number)
        chosen = {name: table[name] for name in values}
        write_scores_of(workdir, values, chosen, "scores", captions={"coco_karpathy": mteb})
        (workdir / "config.json").write_text(json.dumps(config))
        refused = compare({"part": [workdir]}, models=models, table=table)
        assert [line.name for line in refused.lines] == ["part"]
        assert words in " ".join(refused.remarks), words
        assert "left out" in refused.remarks[-1] and "LLaVE-7B" in refused.remarks[-1]

    # Beside both, only in the columns of the one.
    both = compare({"full": [full], "part": [workdir]}, models=models, table=table)
    assert line(both, "LLaVE-7B").cells.keys() <= line(both, "full").cells.keys()
    assert line(both, "part").cells.keys().isdisjoint(line(both, "LLaVE-7B").cells)


def ranked(name, rank):
    """A retrieval set of which nothing is shown."""
    count, none = len(rank), np.zeros(0, np.int32)
    empty = np.zeros((0, 5), np.float32)
    return RetrievalResult(
        name=name,
        ids=tuple(map(str, range(count))),
        items=(),
        candidates=9,
        rank=np.array(rank, np.int32),
        ndcg_5=np.zeros(count),
        ndcg=np.zeros(count),
        average_precision=np.zeros(count),
        gold_score=np.zeros(count, np.float32),
        hardest=np.zeros(count, np.float32),
        shown=none,
        query=none,
        gold=none,
        top=empty.astype(np.int32),
        top_score=empty,
        top_relevant=empty.astype(bool),
    )


def test_rows_of_every_kind_are_drawn(tmp_path):
    counts = np.array([3, 1], np.int32)
    found = CaptionsResult("s", counts, ranked("s", [0, 0, 7, 0]), ranked("s", [0, 5]))
    columns = [("captions", "s", way, "R@1") for way in ("t2i", "i2t")]
    t2i, i2t = rows.of_result(found, columns)
    assert t2i.means()[columns[0]] == 75.0 and i2t.means()[columns[1]] == 50.0
    zero = dataclasses.replace(t2i, values={columns[0]: np.zeros(2)})
    draws = rows.drawn_differences(t2i, zero, 0)[columns[0]]
    assert set(np.round(draws, 6)) == {round(200 / 3, 6), 75.0, 100.0}

    # Retrieval and compositional benchmarks change by row
    def write(name, rank, sign):
        sets = {"x": ranked("x", rank), "y": ranked("y", rank[::-1])}
        cosines = sign * np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 2, 2)
        cosines[::2] *= -1
        rules = [RuleResult("winoground", "test", "winoground", cosines, ("",) * 6)]
        for subset in ("replace_obj", "replace_att", "swap_obj"):
            rules.append(RuleResult("sugarcrepe", subset, "sugarcrepe", cosines[:, :1], ("",) * 6))
        folder = tmp_path / name / "results"
        folder.mkdir(parents=True)
        for number, result in enumerate([*sets.values(), *rules]):
            results_lib.save_result(folder / f"{number}.npz", result)
        composition = {n: s.percent for n, s in composition_rules.named_scores(rules).items()}
        kinds = {"retrieval": retrieval_scores.of_sets(sets), "composition": composition}
        write_scores_of(tmp_path / name, {}, {}, "scores", **kinds)
        return tmp_path / name

    weak, strong = write("weak", [3, 1, 0, 7], -1), write("strong", [0, 0, 0, 7], 1)
    compared = compare({"weak": [weak], "strong": [strong]}, "weak", table={})
    cells = line(compared, "strong").cells
    for column in (
        ("retrieval", "R@1"),
        ("retrieval", "datasets", "y", "MRR"),
        ("composition", "winoground/text"),
        ("composition", "sugarcrepe/swap_obj"),
        ("composition", "sugarcrepe/replace_macro"),
    ):
        low, high = cells[column].interval
        assert low <= cells[column].change <= high, column
    assert cells["retrieval", "R@1"].change == 50.0
    assert cells["retrieval", "median_rank"].interval is None
    assert cells["retrieval", "queries"].change is None

    # Another set alone has the same columns, and is another set.
    sides = []
    for name, rank in (("p", [0, 1]), ("q", [0, 0, 0])):
        kinds = {"retrieval": retrieval_scores.of_sets({name: ranked(name, rank)})}
        sides.append(write_scores_of(tmp_path / name, {}, {}, "scores", **kinds))
    compared = compare({"p": sides[:1], "q": sides[1:]}, "p", table={})
    assert all(cell.change is None for cell in line(compared, "q").cells.values())
    assert "q has other sets of retrieval than p" in compared.remarks[0]


def test_means_of_video_sets_are_drawn_from_sets_of_any_kind(tmp_path, results):
    own = ["mmeb_v2_smthsmthv2", *mmeb_v2_video.members("V-MRET")]
    of_labels = [name for name in mmeb_v2_video.members("V-CLS") if name not in own]
    workdirs = []
    for side, rank in zip(results, ([3, 0, 0, 7], [0, 0, 1, 0]), strict=True):
        rankings = {name: dataclasses.replace(side["digits"], name=name) for name in own}
        sets = {name: ranked(name, rank) for name in of_labels}
        folder = tmp_path / str(len(workdirs)) / "results"
        folder.mkdir(parents=True)
        for number, result in enumerate([*rankings.values(), *sets.values()]):
            results_lib.save_result(folder / f"{number}.npz", result)
        of_sets = retrieval_scores.of_sets(sets)
        hits = {name: ranking.hit_at_1 for name, ranking in rankings.items()}
        found = mmeb_v2_video.summary(hits, of_sets["datasets"], {}) | {"retrieval": of_sets}
        workdirs.append([write_scores_of(folder.parent, {}, {}, "scores", **found)])
    compared = compare(dict(zip("ab", workdirs, strict=True)), "a", table={})
    cells = line(compared, "b").cells
    change = results[1]["digits"].hit_at_1 - results[0]["digits"].hit_at_1
    expected = {("V-MRET",): change, ("video", own[1]): change, ("video", of_labels[0]): 25.0}
    expected["V-CLS",] = (change + 4 * 25.0) / 5
    for column, value in expected.items():
        low, high = cells[column].interval
        assert low <= cells[column].change <= high and cells[column].change == pytest.approx(value)
    width = {column: np.ptp(cells[column].interval) for column in expected}
    assert width["V-MRET",] < width["video", own[1]]  # of three sets whose rows are drawn apart
    assert ("Video",) not in cells and ("V-QA",) not in cells
    assert not read_run(workdirs[0][0]).rankings.keys() ^ set(own)
