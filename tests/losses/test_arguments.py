"""Arguments of losses that cannot be meant are refused, and named."""

import jax
import numpy as np
import pytest

from unime_jax.losses import contrastive, relational_distillation

CONTRASTIVE = [
    ("temperature is 0", {"temperature": 0}),
    ("temperature is nan", {"temperature": float("nan")}),
    ("hard_negatives is 0", {"hard_negatives": 0}),
    ("column_block is 0", {"column_block": 0}),
    ("pool is 0", {"pool": 0}),
    ("4 queries are no whole number of pools of 3", {"pool": 3}),
    ("hardness_on is 'none'", {"hardness_on": "none"}),
    ("query_query_margin is 0.1, but query_query is off", {"query_query_margin": 0.1}),
    ("document_document_margin is 0", {"document_document_margin": 0.0}),
    (r"query_id is int32\[5\]; .*integers \[B\]", {"query_id": np.zeros(5, np.int32)}),
    (r"closed is int32\[4\]; .*booleans \[B\]", {"closed": np.zeros(4, np.int32)}),
    (r"temperature is float32\[3\]; .*a number or", {"temperature": np.ones(3, np.float32)}),
    ("same D", {"queries": np.zeros((4, 3), np.float32)}),
    ("same D", {"queries": np.zeros(5, np.float32)}),
    ("same D", {"candidates": np.zeros(5, np.float32)}),
    ("0 queries", {"queries": np.zeros((0, 5), np.float32), "positive": np.zeros(0, int)}),
    ("0 candidates", {"candidates": np.zeros((0, 5), np.float32), "positive": np.zeros(4, int)}),
    ("only 6 candidates", {"queries": np.zeros((7, 5), np.float32)}),
    (r"positive is int32\[5\]; .*integers \[B\]", {"positive": np.zeros(5, np.int32)}),
    (r"positive is float32\[4\]", {"positive": np.zeros(4, np.float32)}),
    (r"target_id is int32\[4\]; .*\[M\]", {"target_id": np.zeros(4, np.int32)}),
    (r"candidate_mask is int32\[6\]; .*booleans", {"candidate_mask": np.ones(6, np.int32)}),
    (r"explicit_negatives is int32\[4\]; .*\[B, H\]", {"explicit_negatives": np.zeros(4, int)}),
    (r"explicit_negatives is int32\[6,", {"explicit_negatives": np.zeros((6, 2), np.int32)}),
]
RELATIONAL = [
    ("temperature is 0.0", {"temperature": 0.0}),
    ("teacher_temperature is -1.0", {"teacher_temperature": -1.0}),
    ("direction is 'ts'", {"direction": "ts"}),
    ("reduction 'none'", {"reduction": "none"}),
    ("student's rows are .*the teacher's", {"teacher": np.ones((5, 2))}),
    ("student's rows are", {"student": np.ones(4), "teacher": np.ones((4, 2))}),
    ("columns of both", {"student_columns": np.ones((4, 3))}),
    (
        "student's columns are",
        {"student_columns": np.ones((5, 3)), "teacher_columns": np.ones((4, 2))},
    ),
    (
        "the student's rows .* differ in width",
        {"student_columns": np.ones((4, 2)), "teacher_columns": np.ones((4, 2))},
    ),
    (
        "the teacher's rows .* differ in width",
        {"student_columns": np.ones((4, 3)), "teacher_columns": np.ones((4, 3))},
    ),
]


def shaped(arguments):
    """Arrays as those of a traced program; settings as they are."""
    return {
        name: jax.ShapeDtypeStruct(value.shape, jax.dtypes.canonicalize_dtype(value.dtype))
        for name, value in arguments.items()
        if isinstance(value, np.ndarray)
    }


def traced(function, arguments):
    arrays = shaped(arguments)
    rest = {name: value for name, value in arguments.items() if name not in arrays}
    jax.eval_shape(lambda arrays: function(**arrays, **rest), arrays)


@pytest.mark.usefixtures("unchecked_shapes")
def test_what_cannot_be_meant_is_refused():
    good = {"queries": np.zeros((4, 5), np.float32), "candidates": np.zeros((6, 5), np.float32)}
    least = {"temperature": 1e-3, "hard_negatives": 1, "column_block": 1}
    traced(contrastive, good | least)
    traced(contrastive, good | {"pool": 1})
    for message, change in CONTRASTIVE:
        with pytest.raises(ValueError, match=f"contrastive: .*{message}"):
            traced(contrastive, good | change)
    good = {"student": np.ones((4, 3), np.float32), "teacher": np.ones((4, 2), np.float32)}
    traced(relational_distillation, good)
    for message, change in RELATIONAL:
        with pytest.raises(ValueError, match=f"relational_distillation: .*{message}"):
            traced(relational_distillation, good | change)
