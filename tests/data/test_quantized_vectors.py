"""Embeddings in fewer bits: sentence-transformers' bytes, and how near what they stand for is."""

import json
import re

import numpy as np
import pytest
from sentence_transformers.util.quantization import quantize_embeddings

from tests.tables import for_each
from unime_jax.data import quantized_vectors
from unime_jax.data.quantized_vectors import Quantization, quantized, ranges_of

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")


@for_each("precision", PRECISIONS)
def test_codes_are_those_of_sentence_transformers(precision, caplog, unchecked_shapes):
    random = np.random.default_rng(0)
    vectors, others = random.standard_normal((2, 150, 21)).astype(np.float32)
    vectors[3], vectors[:, 4], others[:, 4] = 0, 0.25, 0.25
    found = quantized(vectors, precision)
    expected = quantize_embeddings(vectors, precision)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    assert quantized(vectors[:0], precision).shape == (0, found.shape[1])
    if precision in ("int8", "uint8"):
        assert "those of the 150 embeddings of this call" in caplog.text
        ranges = ranges_of(others)
        found = quantized(vectors, precision, ranges=ranges)
        calibrated = quantize_embeddings(vectors, precision, calibration_embeddings=others)
        np.testing.assert_array_equal(found, calibrated)
        np.testing.assert_array_equal(found, quantize_embeddings(vectors, precision, ranges))
    else:
        ranges = None

    # What they stand for, also after a record.
    kind = Quantization(precision, 21, ranges)
    record = json.loads(json.dumps(quantized_vectors.to_record(kind)))
    decoded = quantized_vectors.of_record(record).decode(kind.encode(vectors))
    assert decoded.dtype == np.float32
    if precision in ("binary", "ubinary"):
        np.testing.assert_array_equal(decoded, np.where(vectors > 0, 1, -1))
    elif ranges is None:
        np.testing.assert_array_equal(decoded, vectors)
    else:
        half = (ranges[1] - ranges[0]) / 510
        inside = np.clip(vectors, *ranges)
        assert (np.abs(decoded - inside) <= half * 1.001 + 1e-6).all()
        np.testing.assert_array_equal(decoded[:, 4], 0.25)
    half = quantized(vectors, "float16")
    assert half.dtype == np.float16 and np.abs(half - vectors).max() < 2e-3

    # Wrong arguments.
    for call, message in [
        (lambda: quantized(vectors, "int4"), "precision is 'int4'; it must be one of 'float32'"),
        (lambda: quantized(vectors[:1], "int8"), "shape (1, 21); at least two"),
        (lambda: ranges_of(np.full((2, 3), np.inf)), "not finite"),
        (lambda: quantized(vectors * 1e6, "float16"), "too large for float16"),
        (lambda: Quantization("int8", 21), "there are no ranges"),
        (lambda: Quantization("binary", 21, np.zeros((2, 21))), "ranges are of int8 and uint8"),
        (lambda: Quantization("int8", 21, np.zeros((2, 20))), "must be [2, 21] floats"),
        (lambda: Quantization("int8", 2, np.array([[0, 1], [1, 0.5]])), "nowhere above"),
        (lambda: quantized_vectors.of_record({}), "not as written here: KeyError"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
