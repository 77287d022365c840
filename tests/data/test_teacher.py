"""Rows of a student with its teacher's embedding."""

import numpy as np
import pytest

from tests.data.tiny_vectors import TEXTS, VECTORS
from unime_jax.batch import Item, Row
from unime_jax.data.embedding_store import open_embeddings
from unime_jax.data.teacher import WithTeacher


def test_the_teacher_knows_the_item_and_the_student_reads_its_suffix(tmp_path):
    np.save(tmp_path / "vectors.npy", VECTORS[[3, 0]])
    (tmp_path / "texts.txt").write_text("blue\na red circle\n")
    read = []

    def preprocess(item):
        read.append(item)
        zero = np.zeros((1, 1), np.int32)
        return Row(zero[:, 0], zero, zero - 1)

    row_of = WithTeacher(preprocess, open_embeddings(tmp_path), " in one word:")
    row = row_of(Item(TEXTS[0], suffix="?"))
    np.testing.assert_array_equal(row.teacher, VECTORS[0])
    assert read == [Item(TEXTS[0], suffix=" in one word:")]
    with pytest.raises(ValueError, match="has no vector of 'green'"):
        row_of(Item("green"))
