"""How many bad rows in a row make a source unusable."""

import pytest

from tests.backbones.images import encoded, noise
from tests.data.test_loader import PLAN, loader, make_preprocess, rows
from unime_jax.data.loader import MAX_TRIES, read_example
from unime_jax.data.mixture import Pick
from unime_jax.data.quarantine import UnusableSource


def read(source, row):
    return read_example(
        {"a": source}, Pick("a", row), preprocess=make_preprocess(), shapes=PLAN, seed=0
    )


def test_a_source_is_given_up_after_so_many_bad_rows_and_not_one_earlier():
    source = rows("a", MAX_TRIES + 5, bad=range(MAX_TRIES + 5))
    source[MAX_TRIES + 1] = rows("a", MAX_TRIES + 5)[MAX_TRIES + 1]
    with pytest.raises(UnusableSource) as raised:
        read(source, 1)
    tried = [item.id for item in raised.value.items]
    assert tried == [f"a{row}" for row in range(1, MAX_TRIES + 1)]
    assert f"The last: source 'a', example 'a{MAX_TRIES}': " in str(raised.value)
    assert len(read(source, 2).bad) == MAX_TRIES - 1 == 999

    # Images of just the allowed pixels are used
    image = {"qry_image_path": "a.png", "qry_image": encoded(noise(4, 5))}
    sources = {"a": [row | image for row in rows("a", 8)]}
    _, info = next(loader(sources, max_pixels=20))
    assert info.bad == ()
    with pytest.raises(UnusableSource, match="image of 4 x 5 pixels, the limit is 19"):
        next(loader(sources, max_pixels=19))
