"""Weights by the size of sources, and the modality of their queries."""

import math

import pytest

from tests.models.oracle import picture
from unime_jax.data import sampling
from unime_jax.data.sampling import query_modalities, weights_by_size


def test_weights_follow_sizes_as_the_temperature_says():
    sizes = {"a": 100, "b": 900}
    assert weights_by_size(sizes, 1.0) == pytest.approx({"a": 0.1, "b": 0.9})
    assert weights_by_size(sizes, 2.0) == pytest.approx({"a": 0.25, "b": 0.75})
    assert weights_by_size(sizes, math.inf) == pytest.approx({"a": 0.5, "b": 0.5})
    # Of any size and temperature, none is infinite or not a number.
    assert weights_by_size({"a": 10**9, "b": 1}, 1e-3) == {"a": 1.0, "b": 0.0}

    # Sources are told apart by a sample of their queries
    rows = {
        "images": [row(i, image=True) for i in range(200)],
        # A bad row is none, and images of candidates do not count.
        "texts": [{"qry": ""}, row(1, image=False) | {"neg_image": [picture(9, 8, 1)]}],
        "mixed": [row(i, image=i < 150) for i in range(200)],
        "bad": [{"qry": ""}],
    }
    modalities = query_modalities(rows, ["texts", "images", "bad"])
    assert modalities == {
        "bad": sampling.TEXTS,
        "images": sampling.IMAGES,
        "texts": sampling.TEXTS,
    }
    with pytest.raises(
        ValueError, match="'mixed' has queries with images .* and without .*make tw"
    ):
        query_modalities(rows, ["images", "mixed"])
    with pytest.raises(ValueError, match="did you mean texts"):
        query_modalities(rows, ["text"])


def row(number, *, image):
    given = {"qry_image_path": "a.png", "qry_image": picture(9, 8, 0)} if image else {}
    return {"qry": f"query {number}", "pos_text": f"positive {number}"} | given
