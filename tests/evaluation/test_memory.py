"""What an evaluation holds: one dataset's numbers, and of images only what an encoder asks for."""

import tracemalloc

import numpy as np

from unime_jax.evaluation import tasks
from unime_jax.evaluation.encoding.shared_encoder import SharedEncoder
from unime_jax.evaluation.ranking import DatasetResult
from unime_jax.evaluation.tasks import composition, mmeb

ROWS, CANDIDATES, POOL, WIDTH = 100, 200, 300, 64
IMAGE = 100_000  # bytes of a file


class Rows:
    """A dataset whose rows are made when they are asked for; every third item has an image."""

    def __init__(self, name):
        self.name, self.read = name, 0

    def __len__(self):
        return ROWS

    def __getitem__(self, number):
        self.read += 1
        own = np.random.default_rng(number).choice(POOL, CANDIDATES, replace=False)
        return {
            "qry_text": f"{self.name}: {number}?".encode(),
            "qry_img_path": b"",
            "tgt_text": [f"{self.name}: candidate {i}".encode() for i in own],
            "tgt_img_path": [b"" if i % 3 else f"{self.name}/{i}.png".encode() for i in own],
        }


def read_image(path):
    return bytes(IMAGE)


def encode(items):
    """One item after the other, as threads do, a few at a time."""
    lengths = [sum(len(image.data) for image in item.media) for item in items]
    assert max(lengths) == IMAGE
    return np.random.default_rng(len(items)).standard_normal((len(items), WIDTH), np.float32)


def test_two_datasets_take_the_memory_of_one():
    sources = [Rows("one"), Rows("two")]
    suite = [mmeb.Task(source.name, source) for source in sources]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        shared = SharedEncoder(encode, limit=0)
        peaks, results = [], []
        for task in suite:
            tracemalloc.reset_peak()
            results.append(tasks.run(task, read_image, shared))
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    # Of 200 x 200 candidates: numbers, scores and places of a few bytes each. Texts, paths and
    # images alone would be 9 and 10 MB.
    assert peaks[0] < 64 * ROWS * CANDIDATES
    assert peaks[1] < 1.3 * peaks[0]
    assert [source.read for source in sources] == [ROWS, ROWS]
    assert all(isinstance(result, DatasetResult) for result in results)
    assert not any(m.data for r in results for item in r.items for m in item.media)

    # Tables are of numbers and images read late
    # Candidates are numbers of four bytes in a table of distinct items.
    task = mmeb.Task("one", Rows("one")).open(read_image)
    assert len(task.items) == ROWS + POOL
    assert task.candidates.dtype == task.query.dtype == np.int32
    assert task.candidates.nbytes == 4 * ROWS * CANDIDATES
    np.testing.assert_array_equal(np.diff(task.offsets), CANDIDATES)
    row = Rows("one")[7]
    own = task.candidates[task.offsets[7] : task.offsets[8]]
    assert [task.items.keys[i][0].encode() for i in own] == row["tgt_text"]

    # No image is read before an encoder asks for it.
    paths = []

    def images(path):
        paths.append(path)
        return b"..."

    task = mmeb.Task("one", Rows("one")).open(images)
    assert not paths
    number = next(i for i, (_, path) in enumerate(task.items.keys) if path)
    assert task.items[number].media[0].data == b"..." and paths == [task.items.keys[number][1]]
    rows = [{"image_path": "a.png", "caption": "b", "negative_caption": "c"}]
    composition.Task("swap", rows, "<|image_1|>").open(images)
    assert len(paths) == 1

    # Vectors are kept for other datasets up to a limit
    calls = []

    def remember(items):
        calls.append([item.text for item in items])
        return np.eye(8, 4, dtype=np.float32)[: len(items)] + 1

    shared = SharedEncoder(remember, limit=2 * 4 * 4)  # two vectors of four numbers
    row = {"qry_text": "a", "qry_img_path": "", "tgt_text": ["b", "c"], "tgt_img_path": ["", ""]}
    for _ in range(2):
        tasks.run(mmeb.Task("one", [row]), read_image, shared)
    assert calls == [["a", "b", "c"], ["c"]]
