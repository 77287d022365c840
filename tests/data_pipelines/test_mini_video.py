"""MiniVideo's rows and files: what is asked is to be seen, order only in the order of frames."""

import numpy as np
import pytest

from data_pipelines.mini_mmeb import world
from data_pipelines.mini_video import clip, content, prepare
from data_pipelines.mini_video.content import path_of
from unime_jax.data import clips
from unime_jax.evaluation import suite
from unime_jax.evaluation.tasks.captions import VIDEO

SEED, ROWS = 3, 24
SMALL = {"seed": SEED, "train_rows": 5, "eval_rows": 4}
ORDER = {"Directions": 4, "Orders": 2}  # candidates of sets that need the order of frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare(folder, **SMALL)
    return folder


def moved(shown):
    """Where the thing goes to, read from the scenes."""
    first, *_, last = (scene.things[0] for scene in shown.scenes())
    across, down = last.x - first.x, last.y - first.y
    assert abs(abs(across) - abs(down)) > 10
    if abs(across) > abs(down):
        return "right" if across > 0 else "left"
    return "down" if down > 0 else "up"


def test_rows_are_true_and_only_the_order_of_frames_tells_a_clip_from_its_turn():
    for dataset in content.DATASETS:
        rows = content.rows(dataset, "eval", SEED, ROWS)
        assert rows == tuple(content.rows(dataset, "eval", SEED, ROWS)) and len(rows) == ROWS
        assert set(rows).isdisjoint(content.rows(dataset, "train", SEED, ROWS))
        for row in rows:
            gold = row.candidates[0]
            names = {(side.text, path_of(side)) for side in row.candidates}
            assert len(names) == len(row.candidates) > row.hard
            shown = row.query.clip or gold.clip
            scenes = shown.scenes()
            kinds = {thing.kind for scene in scenes for thing in scene.things}
            assert kinds <= set(world.SEEN) and all(len(scene.things) == 1 for scene in scenes)
            assert shown.turned().scenes() == scenes[::-1]
            if isinstance(shown, clip.Moving):
                assert moved(shown) == shown.direction and shown.caption.endswith(shown.direction)
            match dataset.name:
                case "VideoObjects":
                    label = f"{' '.join(scenes[-1].things[0].kind)} on {scenes[-1].background}"
                    assert gold.text == label and len(names) == content.CANDIDATES
                case "VideoBackgrounds":
                    assert gold.text == scenes[0].background and len(names) == 8
                case "Directions":
                    assert gold.text == f"moves {moved(shown)}"
                case "Orders":
                    assert gold.text.startswith(" ".join(scenes[0].things[0].kind) + " on")
                case "Clips_t2v":
                    assert gold.clip.caption in row.query.text
                    assert row.candidates[1].clip == gold.clip.turned()
                case "Clips_v2t":
                    assert gold.text == row.query.clip.caption
                    assert row.candidates[1].text == row.query.clip.turned().caption
            assert len(row.candidates) == ORDER.get(dataset.name, len(row.candidates))
    ways = [row.query.clip.direction for row in content.rows(content.DATASETS[2], "eval", 0, 40)]
    assert {ways.count(name) for name in clip.DIRECTIONS} == {10}


def test_clips_are_files_that_evaluation_reads(folder):
    opened = suite.make_suite(
        folder,
        mmeb_folder="mini_video/eval",
        composition_folder="",
        images="mini_video/clips",
        image_prompt="",
        limit=0,
        agreement=None,
        retrieval_data="",
        columns={},
        caption_prompt="{caption}",
        video_prompt=VIDEO,
        benchmark_folder="",
        benchmark_names=(),
    )
    assert {name: meta for name, (meta, _) in opened.table.items()} == {
        dataset.name: dataset.meta for dataset in content.DATASETS
    }
    kinds, frames = set(), []

    def encode(items):
        """A caption for texts and clips alike, but for the order: the frames as a bag."""
        vectors = []
        for item in items:
            kinds.update(media.kind for media in item.media)
            for media in item.media:
                with clips.opened(media.data) as opened_clip:
                    bag = [np.asarray(f) for f in opened_clip.frames(range(clip.FRAMES))]
                frames.append(len(bag))
                vectors.append([np.mean(bag), np.std(bag), 1.0])
            if not item.media:
                vectors.append([len(item.text), 1.0, 1.0])
        return np.array(vectors, np.float32)

    found, results = suite.evaluate(opened, encode)
    assert kinds == {"clip"} and set(frames) == {clip.FRAMES} and found["CLS"] is not None
    # A model without order gives a clip and its turn one vector: they tie in every row.
    ranking = results["mmeb", "Clips_t2v"]
    assert ranking.hit_at_1 >= ranking.strict_hit_at_1 == 0


def test_the_same_bytes_again_and_nothing_twice(folder, tmp_path):
    root = folder / "mini_video"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    prepare(folder, **SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ValueError, match="built with seed=3; asked for seed=4"):
        prepare(folder, **SMALL | {"seed": 4})
    (tmp_path / "mini_mmeb").symlink_to(folder / "mini_mmeb")
    prepare(tmp_path, **SMALL)
    for path in (*root.rglob("*.zip"), *root.rglob("*.jsonl"), *root.rglob("*.array_record*")):
        assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes()
