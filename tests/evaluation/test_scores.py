import json
from pathlib import Path

import pytest

from tests.tables import for_each
from unime_jax.evaluation import score_table, scores

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics" / "mmeb_table" / "case.json"
SMALL = {"digits": ("CLS", "IND"), "scenes": ("RET", "OOD"), "regions": ("RET", "IND")}


def test_averages_are_those_of_the_original_table():
    # Averages are those of the original table.
    golden = json.loads(GOLDEN.read_text())
    # Fractions, as in the original: one mean is 0.4675 and its rounding hangs on the last bit.
    result = scores.summary(golden["accuracy"], scores.MMEB_V1)
    names = dict(zip(scores.METAS, list(golden["groups"])[:4], strict=True)) | {
        "IND": "IND",
        "OOD": "OOD",
        "All": "Average",
    }
    for column in scores.COLUMNS:
        assert round(result[column], 3) == golden["printed"][names[column]]
    assert result["All"] == pytest.approx(golden["mean_of_36"], abs=1e-12)
    assert result["meta_mean"] == pytest.approx(golden["mean_of_4_meta"], abs=1e-12)
    for column, group in names.items():
        if column != "All":
            own = {name for name, groups in scores.MMEB_V1.items() if column in groups}
            assert own == set(golden["groups"][group])

    # Groups without datasets are none.
    result = scores.summary({"digits": 10, "scenes": 20, "regions": 60}, SMALL, {"swap": 55})
    assert result == {
        "datasets": {"digits": 10, "scenes": 20, "regions": 60},
        "CLS": 10,
        "VQA": None,
        "RET": 40,
        "VG": None,
        "IND": 35,
        "OOD": 20,
        "All": 30,
        "meta_mean": None,
        "composition": {"swap": 55},
    }

    # What is missing of MMEB is named; of own datasets nothing is.
    part = {"CIRR": ("RET", "IND"), "GQA": ("VQA", "OOD")}
    result = scores.summary({"CIRR": 30, "GQA": 50}, part)
    assert result["All"] == 40 and result["meta_mean"] is None
    assert result["missing"] == [name for name in scores.MMEB_V1 if name not in part]
    assert "missing" not in scores.summary(golden["accuracy"], scores.MMEB_V1)

    # Composition alone has no averages.
    result = scores.summary({}, {}, {"swap": 55})
    assert result["All"] is None and result["IND"] is None
    assert result["composition"] == {"swap": 55}


@for_each(
    ("datasets", "table", "message"),
    [
        ({"digits": 1, "scenes": 1}, SMALL, r"without a score: \['regions'\]"),
        ({k: 1 for k in (*SMALL, "new")}, SMALL, r"not in the table: \['new'\]"),
        ({"a": 1}, {"a": ("RTE", "IND")}, "'a' is 'RTE', 'IND'; known are"),
    ],
)
def test_summary_refuses_what_it_cannot_average(datasets, table, message):
    with pytest.raises(ValueError, match=message):
        scores.summary(datasets, table)


def test_table():
    before = scores.summary({"digits": 10, "scenes": 20, "regions": 60}, SMALL, {"swap": 50})
    after = scores.summary({"digits": 90.04, "scenes": 10, "regions": 80}, SMALL, {"swap": 75.5})
    assert score_table.table(before, after) == "\n".join(
        [
            "hit@1 %           CLS    VQA    RET     VG    IND    OOD    All",
            "before           10.0      -   40.0      -   35.0   20.0   30.0",
            "after            90.0      -   45.0      -   85.0   10.0   60.0",
            "change          +80.0      -   +5.0      -  +50.0  -10.0  +30.0",
            "",
            "composition %    swap",
            "before           50.0",
            "after            75.5",
            "change          +25.5",
        ]
    )
    assert "change" not in score_table.table(before, None)

    # Averages say what they lack, and UniME's has its own name.
    accuracy = json.loads(GOLDEN.read_text())["accuracy"]
    whole = scores.summary({name: 100 * v for name, v in accuracy.items()}, scores.MMEB_V1)
    less = {
        name: value for name, value in whole["datasets"].items() if name not in ("N24News", "GQA")
    }
    part = scores.summary(less, {name: scores.MMEB_V1[name] for name in less})
    assert "without" not in score_table.table(None, whole)
    (lacks, own) = score_table.table(None, part | {"instructions": "data"}).splitlines()[2:4]
    assert lacks == "All: mean of 34 of 36; without N24News, GQA"
    assert own == (
        f"meta_mean: {part['meta_mean']:.1f}, the mean of CLS, VQA, RET, VG, which UniME's first "
        "paper prints as Overall"
    )
    assert "before" not in score_table.table(None, after)


def test_the_file_of_scores(tmp_path):
    # A later after keeps before.
    workdir = tmp_path / "run"
    assert scores.read_scores(workdir) == {}
    before = scores.summary({"digits": 10, "scenes": 20, "regions": 60}, SMALL)
    after = scores.summary({"digits": 20, "scenes": 20, "regions": 60}, SMALL)
    scores.write_scores(workdir, "before", before)
    scores.write_scores(workdir, "after", before)
    scores.write_scores(workdir, "after", after)
    assert scores.read_scores(workdir) == {"before": before, "after": after}
    scores.write_scores(workdir, "before", after)
    assert list(scores.read_scores(workdir)) == ["before", "after"]
    assert [p.name for p in workdir.iterdir()] == ["evaluation.json"]

    # A failed write leaves the file alone.
    (tmp_path := tmp_path / "next").mkdir()
    scores.write_scores(tmp_path, "before", {"All": 1.0})
    with pytest.raises(ValueError):
        scores.write_scores(tmp_path, "after", {"All": float("nan")})
    assert scores.read_scores(tmp_path) == {"before": {"All": 1.0}}
    with pytest.raises(ValueError, match="when is 'later'"):
        scores.write_scores(tmp_path, "later", {})

    # A broken file is named.
    (tmp_path := tmp_path / "next").mkdir()
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(ValueError, match="evaluation.json is not JSON"):
        scores.read_scores(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"scores": {"missing": "GQA"}}')
    with pytest.raises(ValueError, match="'scores' has missing datasets that are no names"):
        scores.read_scores(tmp_path)
