"""Datasets of few items are encoded together, and an error still names the one that it is of."""

import numpy as np
import pytest

from unime_jax.batch import Item
from unime_jax.evaluation import tasks
from unime_jax.evaluation.encoding.shared_encoder import SharedEncoder
from unime_jax.evaluation.tasks import mmeb

DATASETS = {"one": "abc", "two": "ade", "three": "fgh", "four": "iab"}  # a query and candidates


def suite():
    for name, (query, *candidates) in DATASETS.items():
        row = {"qry_text": query, "qry_img_path": "", "tgt_text": candidates}
        yield mmeb.Task(name, [row | {"tgt_img_path": [""] * len(candidates)}])


def unreachable(path):
    raise KeyError(path)


class Encoder:
    """Vectors that follow from the text, and the texts of every call."""

    def __init__(self, refused=""):
        self.calls, self.refused = [], refused

    def __call__(self, items):
        texts = [items[number].text for number in range(len(items))]
        self.calls.append("".join(texts))
        if self.refused in texts:
            raise ValueError(f"item {self.refused!r}: 9 tokens are more than 8")
        return np.array([np.random.default_rng(ord(t)).normal(size=4) for t in texts], np.float32)


def test_small_tasks_are_encoded_together_with_the_same_results(monkeypatch):
    # Small tasks are encoded together with the same results.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "GROUP", 6)
        opened, open_task = [], mmeb.Task.open
        patch.setattr(
            mmeb.Task,
            "open",
            lambda task, images: opened.append(task.name) or open_task(task, images),
        )
        encode = Encoder()
        together = []
        for task, result in tasks.run_all(suite(), unreachable, SharedEncoder(encode)):
            together.append((task.name, list(opened), result))
        assert encode.calls == ["abcde", "fghi"], "a group at a time, shared items once"
        assert [name for name, _, _ in together] == list(DATASETS)
        assert together[1][1] == ["one", "two"], "the next group is opened when this one is done"
        for task, (_, _, result) in zip(suite(), together):
            alone = tasks.run(task, unreachable, Encoder())
            for field, value in vars(alone).items():
                np.testing.assert_equal(getattr(result, field), value, err_msg=f"{task}, {field}")

    # Items beyond the limit are kept for their group alone.
    monkeypatch.setattr(tasks, "GROUP", 6)
    encode = Encoder()
    shared = SharedEncoder(encode, limit=4 * 4)  # one vector of four numbers
    assert len(list(tasks.run_all(suite(), unreachable, shared))) == 4
    assert encode.calls == ["abcde", "fghib"]

    monkeypatch.undo()

    # An error in a group names the dataset and the row of its item, before any is scored.
    with pytest.raises(ValueError, match=r"^dataset 'three', row 0 \(id 0\): item 'g': 9 tokens"):
        next(tasks.run_all(suite(), unreachable, SharedEncoder(Encoder(refused="g"))))
    row = {"qry_text": "q", "qry_img_path": "x.png", "tgt_text": ["r"], "tgt_img_path": [""]}
    broken = [*suite(), mmeb.Task("five", [row])]
    with pytest.raises(ValueError, match=r"^dataset 'five', row 0 \(id 0\): image 'x.png' has no"):
        next(tasks.run_all(broken, unreachable, SharedEncoder(Encoder())))

    # A text with another instruction is another item.
    encode = Encoder()
    shared = SharedEncoder(encode)
    shared.encode_group([[Item("a")], [Item("a", suffix="!"), Item("b")]])
    assert encode.calls == ["aab"]
    np.testing.assert_array_equal(shared([Item("b")]), Encoder()([Item("b")]))
    assert SharedEncoder(lambda items: np.zeros((0, 4), np.float32))([]).shape == (0, 4)
    assert len(encode.calls) == 1
