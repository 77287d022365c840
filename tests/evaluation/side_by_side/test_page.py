"""Several runs as a page: complete, self-contained, closed, and bounded."""

import io
import re
import time

import numpy as np
from PIL import Image

from tests.evaluation.side_by_side.tiny_runs import write_evaluation, write_training
from tests.evaluation.tiny_report import TABLE, Page, words_of
from unime_jax.evaluation import compare, scores
from unime_jax.evaluation.encoding.item_table import bare_item
from unime_jax.evaluation.ranking import DatasetResult
from unime_jax.evaluation.side_by_side import comparison, page
from unime_jax.evaluation.side_by_side.runs import Group, Run

NAMES = ("clip", "<i>ours</i>", "peer")


def test_a_page_has_tables_figures_and_failures_of_all_runs(tmp_path, results):
    folders = [
        write_evaluation(tmp_path / "clip", results[0]),
        write_training(tmp_path / "ours", *results),
        write_evaluation(tmp_path / "peer", results[0]),
    ]
    named = [f"{name}:{folder}" for name, folder in zip(NAMES, folders, strict=True)]
    groups = compare.read_groups([], named)
    nothing = {"chosen": {}, "models": ["LLaVE-*"], "title": "All <b>together</b>"}
    compare.write(tmp_path / "out" / "page", groups, baseline="clip", **nothing)
    text = (tmp_path / "out" / "page.html").read_text()
    parsed = Page(text)
    words = words_of(parsed)

    assert not {"script", "link", "iframe", "i>ours"} & set(parsed.tags)
    for address in parsed.addresses:
        assert address.startswith(("data:image/", "#")), address
    assert not re.search(r"url\((?!#)|@import|https?://", text)
    assert "<i>ours" not in text and "<b>together" not in text
    assert not re.search(r"<details[^>]* open", text)
    for target in set(re.findall(r'<a href="#([a-z0-9-]+)"', text)):
        assert text.count(f'id="{target}"') == 1, target
    assert {"table-1", "radar", "similarities", "hard-negatives", "failures", "failures-4"} <= set(
        re.findall(r'<a href="#([a-z0-9-]+)"', text)
    )
    assert parsed.tags.count("svg") == 3 + 1  # a histogram a run, and the radar
    assert text.count('alt="similarity matrix') == 3
    for name in TABLE:
        assert words.count(name) >= 3  # table, hard negatives and failures
    change = results[1]["scenes"].hit_at_1 - results[0]["scenes"].hit_at_1
    assert f"+{change:.1f}" in words and "baseline" in words
    assert "No run is on the benchmarks of LLaVE-0.5B" in words

    # A row is shown once, with the answers of each run in its own column.
    section = text[text.index('id="failures-1"') :].split("</details>")[0]
    rows = section.split('<div class="example together">')[1:]
    assert len(rows) == 3
    for row in rows:
        assert row.count('class="model"') == 3 and row.count('class="query"') == 1
        assert row.count('class="candidate gold"') == 3
    assert "first of 8" in words and "✗ place" in words and "not found" not in words
    for ending in (".md", ".tex", ".csv"):
        assert (tmp_path / "out" / f"page{ending}").stat().st_size > 500

    # Without the images it is made, too, and says that they are gone.
    (tmp_path / "data").rename(tmp_path / "moved")
    compare.write(tmp_path / "out" / "page", groups, baseline="", **nothing)
    assert "image not found" in (tmp_path / "out" / "page.html").read_text()


def test_36_datasets_of_1000_rows_are_at_most_10_mb(tmp_path):
    rng = np.random.default_rng(0)
    rows, photos = 1000, []
    for _ in range(60):
        buffer = io.BytesIO()
        noise = rng.integers(0, 255, (96, 128, 3), np.uint8)  # nothing compresses worse
        Image.fromarray(noise).save(buffer, "JPEG")
        photos.append(buffer.getvalue())

    def ranked(dataset, rng):
        order = rng.permuted(np.tile(np.arange(5, dtype=np.int32), (rows, 1)), axis=1)
        top = rows + (np.arange(rows, dtype=np.int32)[:, None] + order) % rows
        score = np.sort(rng.random((rows, 5), np.float32))[:, ::-1]
        rank = np.argmin(order, axis=1).astype(np.int32)
        gold_score = score[np.arange(rows), rank]
        return DatasetResult(
            name=dataset,
            ids=tuple(map(str, range(rows))),
            items=items[dataset],
            query=np.arange(rows, dtype=np.int32),
            gold=np.arange(rows, 2 * rows, dtype=np.int32),
            candidates=np.full(rows, 1000, np.int32),
            rank=rank,
            tied=np.zeros(rows, bool),
            gold_score=gold_score,
            hardest=np.where(rank == 0, score[:, 1], score[:, 0]),
            easiest=score[:, 4],
            top=top.astype(np.int32),
            top_score=score,
            aligned=rng.random((32, 32), np.float32),
        )

    items = {
        name: tuple(bare_item(("text " * 60, f"{name}{n}.jpg")) for n in range(2 * rows))
        for name in scores.MMEB_V1
    }
    groups = []
    for number, name in enumerate(("clip", "ours", "peer", "other")):
        generator = np.random.default_rng(number)
        found = {dataset: ranked(dataset, generator) for dataset in scores.MMEB_V1}
        percent = {dataset: result.hit_at_1 for dataset, result in found.items()}
        side = scores.summary(percent, scores.MMEB_V1)
        values = {("datasets", dataset): value for dataset, value in percent.items()}
        run = Run(tmp_path, side, values, {}, found, {}, {}, ())
        groups.append(Group(name, (run,)))
    tables = {group.name: scores.MMEB_V1 for group in groups}
    compared = comparison.compare(groups, chosen={}, baseline="clip", published=(), tables=tables)
    started = time.process_time()
    path = tmp_path / "page.html"

    def images(path):
        return photos[sum(map(ord, path)) % len(photos)]

    page.write_page(path, compared, groups, tables=tables, images=images, title="All of MMEB")
    assert time.process_time() - started < 20
    size = path.stat().st_size
    assert 3_000_000 < size < 10_000_000
    text = path.read_text()
    assert "left out to keep this file small" in text and text.count('class="dataset"') == 72
