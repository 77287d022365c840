"""The distinct items of a corpus: each once, the first of its kind, in order, found again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unime_jax.batch import Item
from unime_jax.data import items as items_module
from unime_jax.data.embedding_store import item_id
from unime_jax.data.items import Items, Lines, Pairs

words = st.sampled_from(["", " ", "a", "b", "c", "größe", "a b"])


def rows_of(draws):
    return [{"qry": q, "pos_text": p, "neg_text": list(n)} for q, p, n in draws]


@given(
    pairs=st.lists(st.tuples(words, words, st.lists(words, max_size=3)), max_size=12),
    lines=st.lists(words, max_size=8),
    piece=st.integers(1, 5),
)
def test_each_once_in_order(pairs, lines, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(items_module, "ROWS", piece)
        corpora = [
            Pairs("p", rows_of(pairs), ("query", "positive", "negatives")),
            Lines("l", lines),
        ]
        found = Items(corpora)
    good = [row for row in pairs if row[0].strip() and row[1].strip()]
    good = [row for row in good if all(text.strip() or not text for text in row[2])]
    expected = [text for q, p, n in good for text in (q, p, *filter(None, n))]
    expected = list(dict.fromkeys([*expected, *filter(str.strip, lines)]))
    assert found.ids.tolist() == [item_id(text) for text in expected]
    assert [found[i] for i in range(len(found))] == [Item(text) for text in expected]
    bad_lines = [n for n, line in enumerate(lines) if not line.strip()]
    assert found.read == len(pairs) + len(lines)
    assert len(found.bad) == len(pairs) - len(good) + len(bad_lines)
    assert [int(b.id) for b in found.bad if b.source == "l"] == bad_lines


def test_bad_items_are_named_by_their_place():
    # Bad items are named by their place.
    found = Items([Lines("a.txt", ["x"]), Lines("b.txt", ["x", "y"])])
    bad = found.blame(1, "p.png", "too long")
    assert bad == ("b.txt", "1", "p.png", "too long")

    # Nothing.
    found = Items([Lines("a.txt", [])])
    assert len(found) == 0 and found.ids.dtype == np.dtype("S32") and not found.bad
