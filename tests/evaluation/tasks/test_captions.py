"""Caption retrieval from rows to recalls, as the published code counts it."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.tables import for_each
from unime_jax.evaluation import score_table, scores, tasks, view_scores
from unime_jax.evaluation.retrieval.caption_scores import of_set
from unime_jax.evaluation.stored import results
from unime_jax.evaluation.tasks import captions

GOLDEN = Path(__file__).parents[2] / "golden" / "metrics"
WAYS = {"t2i": "image_retrieval", "i2t": "text_retrieval"}  # what is retrieved


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


def rows_of(images: int, each: int) -> list[dict]:
    return [
        {"image": f"{n}.png", "captions": [f"caption {n * each + i}" for i in range(each)]}
        for n in range(images)
    ]


def run(rows, vectors, **prompts):
    task = captions.Task("tiny", rows, **{"image_text": "<|image_1|> in one word:"} | prompts)

    def encode(items):
        return np.array(
            [vectors[item.media[0].path if item.media else item.text] for item in items]
        )

    return tasks.run(task, lambda path: png(), encode)


@for_each("case", ["recall_five_captions", "recall_one_to_one"])
def test_recalls_are_the_originals(case):
    golden = json.loads((GOLDEN / case / "case.json").read_text())
    tensors = load_file(GOLDEN / case / "io.safetensors")
    each = golden["captions_per_image"]
    index = np.repeat(np.arange(golden["images"]), each)
    np.testing.assert_array_equal(tensors["text_to_image_index"], index)
    vectors = {f"{n}.png": vector for n, vector in enumerate(tensors["image_embeddings"])}
    texts = enumerate(tensors["text_embeddings"])
    vectors |= {f"caption {n} in one word:": vector for n, vector in texts}
    result = run(rows_of(golden["images"], each), vectors, caption_text="{caption} in one word:")
    found = of_set(result)
    for way, name in WAYS.items():
        for k in (1, 5, 10):
            expected = np.float32(golden["metrics"][f"{name}_recall@{k}"])
            assert np.float32(found[way][f"R@{k}"] / 100) == pytest.approx(expected, abs=1e-7)
            low, high = found[way]["intervals"][f"R@{k}"]
            assert low <= found[way][f"R@{k}"] <= high


def test_ties_and_copies_never_help_and_only_the_own_row_is_right(tmp_path):
    rows = [
        {"image": "0.png", "captions": ["a dog", "a cat", "a dog"]},  # twice the same: both right
        {"image": "1.png", "captions": ["a dog"]},  # the caption of another image, too
        {"image": "1.png", "captions": ["a bird"]},  # the image of another row
    ]
    e = np.eye(4, dtype=np.float32)
    vectors = {"0.png": e[0], "1.png": e[2], "a dog": e[0], "a cat": e[0], "a bird": e[2]}
    result = run(rows, vectors)
    assert result.captions.tolist() == [3, 1, 1] and result.t2i.candidates == 3
    assert result.t2i.ids[2] == "0, caption 2" and result.i2t.candidates == 5
    assert result.t2i.rank.tolist() == [0, 0, 0, 2, 1]  # 1.png ties with its copy
    assert result.i2t.rank.tolist() == [1, 4, 0]  # "a dog" of row 1 ties with all of row 0
    found = of_set(result)
    assert found["t2i"]["R@1"] == pytest.approx(60) and found["i2t"]["R@5"] == 100
    same = run(rows, dict.fromkeys(vectors, e[0]))  # a model that knows nothing
    assert same.t2i.rank.tolist() == [2] * 5 and same.i2t.rank.tolist() == [2, 4, 4]

    # A result on disk is the same and scores have a table
    e = np.eye(3, dtype=np.float32)
    vectors = {f"{n}.png": e[n] for n in range(3)} | {f"caption {n}": e[n // 2] for n in range(6)}
    result = run(rows_of(3, 2), vectors, limit=2)
    results.save_result(tmp_path / "captions-tiny.npz", result)
    loaded = results.load_result(tmp_path / "captions-tiny.npz")
    assert of_set(loaded) == of_set(result) and loaded.t2i.items == result.t2i.items
    np.testing.assert_array_equal(loaded.i2t.top, result.i2t.top)
    found = scores.summary({}, {}) | {"captions": {"tiny": of_set(loaded)}}
    text = score_table.table(None, found, "score")
    title, header, line, low, high = text.split("\n")
    assert title == "tiny: 2 images, 4 captions"
    assert header.split()[2:] == " ".join(scores.recall_columns({})).split()
    assert line.split() == ["score", *["100.0"] * 6] and low.split()[-1] == "100.0"
    scores.write_scores(tmp_path, "scores", found)
    assert scores.read_scores(tmp_path)["scores"] == found
    del found["captions"]["tiny"]["i2t"]["R@5"]
    (tmp_path / "evaluation.json").write_text(json.dumps({"scores": found}))
    with pytest.raises(ValueError, match="has captions 'tiny' without t2i, i2t, R@1"):
        scores.read_scores(tmp_path)


def test_clips_have_ways_of_their_own_and_groups_count_as_clip4clip_counts_them(tmp_path):
    counts = (3, 1, 4, 2, 1, 2)
    names = [f"clip {row}, {n}" for row, count in enumerate(counts) for n in range(count)]
    rows = [
        {"video": f"{row}.mp4", "captions": [f"clip {row}, {n}" for n in range(count)]}
        for row, count in enumerate(counts)
    ]
    generator = np.random.default_rng(0)
    vectors = {name: generator.normal(size=8).astype(np.float32) for name in names}
    vectors |= {row["video"]: generator.normal(size=8).astype(np.float32) for row in rows}
    kinds = set()

    def encode(items):
        kinds.update(media.kind for item in items for media in item.media)
        named = [item.media[0].path if item.media else item.text for item in items]
        return np.array([vectors[name] for name in named])

    def result_of(grouped):
        task = captions.Task("tiny", rows, "<|video_1|>", medium="clip", grouped=grouped)
        return tasks.run(task, lambda path: b"clip", encode)

    plain, grouped = result_of(False), result_of(True)
    assert kinds == {"clip"} and list(grouped.ways) == ["t2v", "v2t"]
    np.testing.assert_array_equal(plain.t2i.rank, grouped.t2i.rank)
    # As CLIP4Clip's multi-sentence metrics: a clip's score of a group is that of its best sentence.
    unit = {name: v / np.linalg.norm(v) for name, v in vectors.items()}
    sides = np.stack([unit[f"{n}.mp4"] for n in range(6)]), np.stack([unit[name] for name in names])
    cosines, ends = sides[0] @ sides[1].T, np.cumsum(counts)
    best = np.stack([part.max(axis=1) for part in np.split(cosines, ends[:-1], axis=1)], axis=1)
    expected = (best > np.diag(best)[:, None]).sum(axis=1)
    np.testing.assert_array_equal(grouped.i2t.rank, expected)
    assert grouped.i2t.candidates == 6 and plain.i2t.candidates == 13
    assert (plain.i2t.rank >= grouped.i2t.rank).all() and plain.i2t.rank.sum() > expected.sum()
    results.save_result(tmp_path / "captions-tiny.npz", grouped)
    loaded = results.load_result(tmp_path / "captions-tiny.npz")
    found = of_set(loaded)
    assert found == of_set(grouped) and found["videos"] == 6 and found["captions"] == 13
    assert found["v2t"]["mean_rank"] == pytest.approx(expected.mean() + 1)
    assert found["v2t"]["median_rank"] == np.median(expected) + 1
    shown = {media.kind for item in loaded.t2i.items for media in item.media}
    assert loaded.t2i.items == grouped.t2i.items and shown == {"clip"}
    whole = scores.summary({}, {}) | {"captions": {"tiny": found}}
    scores.write_scores(tmp_path, "scores", whole)
    assert scores.read_scores(tmp_path)["scores"] == whole
    table = score_table.table(None, whole, "score").split("\n")
    assert table[0] == "tiny: 6 videos, 13 captions" and "v2t R@10" in table[1]
    assert view_scores.headline(whole) == {f"{way} R@1": found[way]["R@1"] for way in grouped.ways}

    # Of groups that tie for the first place, none is there.
    vectors |= {name: vectors["clip 0, 0"] for name in ("clip 0, 1", "clip 0, 2", "clip 1, 0")}
    vectors |= {"0.mp4": vectors["clip 0, 0"], "1.mp4": vectors["clip 0, 0"]}
    assert list(result_of(True).i2t.rank[:2]) == [1, 1]


@for_each(
    ("row", "message"),
    [
        (None, "captions 'tiny' has no rows"),
        ({"captions": ["a"]}, "captions 'tiny', row 0: image is missing or empty"),
        ({"image": "0.png", "captions": ["a", ""]}, "row 0: caption 2 of 2 is missing or empty"),
        ({"image": "0.png", "captions": "a"}, "row 0: captions must be a list of texts"),
        ({"image": "0.png", "captions": []}, "row 0: captions must be a list of texts"),
        ({"image": ["a", ""], "captions": ["a"]}, "captions 'tiny', row 0: image 2 of 2 has no"),
    ],
)
def test_bad_rows_are_an_error_that_names_them(row, message):
    with pytest.raises(ValueError, match=message):
        run([row] if row else [], {})
    with pytest.raises(ValueError, match="has no {caption}"):
        run([], {}, caption_text="in one word")
