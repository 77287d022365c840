"""Published scores: what their averages say of each other, and how they are chosen."""

import numpy as np
import pytest

from unime_jax.evaluation import scores
from unime_jax.evaluation.benchmarks import published


def test_published_averages_follow_from_what_they_average():
    models = published.read(published.choose(["all"]))
    assert len(models) == len(published.names()) == 50
    checked = 0
    for model in models:
        row = {name: value for (of, name), value in model.scores.items() if of == published.MMEB}
        assert all(0 < value < 100 for value in model.scores.values()), model.name
        if not {*scores.METAS, "All"} <= row.keys():
            continue
        counts = np.array([10, 10, 12, 4])
        metas = [row[meta] for meta in scores.METAS]
        assert np.dot(counts, metas) / 36 == pytest.approx(row["All"], abs=0.15), model.name
        if "IND" in row:
            halves = (20 * row["IND"] + 16 * row["OOD"]) / 36
            assert halves == pytest.approx(row["All"], abs=0.2), model.name
        if "meta_mean" in row:
            assert np.mean(metas) == pytest.approx(row["meta_mean"], abs=0.1), model.name
        datasets = [row[name] for name in scores.MMEB_V1 if name in row]
        assert len(datasets) in (0, 36)
        if datasets:
            assert np.mean(datasets) == pytest.approx(row["All"], abs=0.15), model.name
            checked += 1
    assert checked == 4
    for table in published.tables():
        assert table.averaging in published.AVERAGING and table.arxiv and table.table
        assert {len(row) for row in table.rows.values()} == {len(table.columns)}
        assert table.notes.keys() <= {"*", *table.rows}
    # No two tables give a model two values.
    given = [
        (model, table.benchmark, column)
        for table in published.tables()
        for model in table.rows
        for column in table.columns
    ]
    assert len(given) == len(set(given))

    # Published rows are chosen by patterns
    assert published.choose(["llave-7b", "UniME-V2*"])[:2] == ["LLaVE-7B", "UniME-V2 Qwen2-VL-2B"]
    with pytest.raises(ValueError, match="no published row is called 'LaVE'; there are LLaVE-0.5B"):
        published.choose(["LaVE"])
    siglip = published.read(["SigLIP So400m"])[0]
    assert siglip.scores[published.MMEB, "RET"] == 44.1
    assert "printed as 31.6" in " ".join(siglip.sources)
