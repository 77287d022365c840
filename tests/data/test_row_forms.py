"""Which columns are which side: told by their names, or by the config, and never guessed."""

import pytest

from tests.tables import for_each
from unime_jax.data.row_forms import MMEB_TRAIN, Form, Side, recognise
from unime_jax.data.settings import COLUMN_KEYS, check_keys

A, B, N = Side("a"), Side("b"), Side("n")
QUERY, POSITIVE, PICTURE = Side("query"), Side("positive"), Side(image="image")
NUMBERED = ("negative_2", "negative_10")
SENTENCES = Form(Side("sentence1"), Side("sentence2"))
TURNED = {"query": "caption", "positive_image": "image"}
FORMS = [
    (("query", "positive"), {}, Form(QUERY, POSITIVE)),
    (("anchor", "positive", "negative"), {}, Form(Side("anchor"), POSITIVE, Side("negative"))),
    (("sentence1", "sentence2"), {}, SENTENCES),
    (("question", "answer", "_id"), {}, Form(Side("question"), Side("answer"), id="_id")),
    (("sent0", "sent1", "hard_neg"), {}, Form(Side("sent0"), Side("sent1"), Side("hard_neg"))),
    (("qry", "pos_text", "neg_text"), {}, MMEB_TRAIN),
    (("id", "qry", "pos_image_path"), {}, MMEB_TRAIN),
    (
        ("query", "positive", "negative_10", "negative_2", "score", "positive_id"),
        {},
        Form(QUERY, POSITIVE, numbered=NUMBERED, score="score"),
    ),
    (("image", "caption"), {}, Form(PICTURE, Side("caption"))),
    (("id", "file_name", "text"), {}, Form(Side(image="file_name"), Side("text"), id="id")),
    (("image", "caption", "txt", "jpg"), {}, Form(PICTURE, Side("txt"))),
    (("query", "positive", "image", "caption"), {}, Form(QUERY, POSITIVE)),
    (("video", "caption"), {}, Form(Side(video="video"), Side("caption"))),
    (("mp4", "txt", "video", "json"), {}, Form(Side(video="video"), Side("txt"))),
    (("query", "positive_video"), {}, Form(QUERY, Side(video="positive_video"))),
    (("qry", "pos_video_path"), {}, MMEB_TRAIN),
    (("query", "positive", "positive_audio"), {}, Form(QUERY, POSITIVE)),
    (("a", "b"), {"query": "a", "positive": "b"}, Form(A, B)),
    (("a", "b", "n"), {"query": "a", "positive": "b", "negatives": "n"}, Form(A, B, N)),
    (("a", "positive", *NUMBERED), {"query": "a"}, Form(A, POSITIVE, numbered=NUMBERED)),
    (("a", "b"), {"query_image": "a", "positive": "b"}, Form(Side(image="a"), B)),
    (("image", "caption"), TURNED, Form(Side("caption"), PICTURE)),
    (("query", "question", "positive"), {"query": "question"}, Form(Side("question"), POSITIVE)),
    (("sentence1", "sentence2", "label"), {"query": "sentence1"}, SENTENCES),
]


@for_each("columns, chosen, form", FORMS)
def test_forms(columns, chosen, form):
    assert recognise(columns, chosen) == form


@for_each(
    "columns, chosen, reason",
    [
        (
            ("q", "text"),
            {},
            "no column is the query or the positive. The columns are q, text; known",
        ),
        (("query", "passages"), {}, r"the positive.*'passages': did you mean 'passage'\?"),
        (("Query", "positive"), {}, r"the query.*'Query': did you mean 'query'\?"),
        (("query", "question", "positive"), {}, "'query' and 'question' could both be the query"),
        (("query", "positive", "negatve"), {}, "'negatve' would be left out; did you mean 'negati"),
        (("query", "positive", "Negatives"), {}, "config.data.columns.negatives='Negatives'"),
        (("query", "positive", "query_images"), {}, "did you mean 'query_image'"),
        (("query", "positive", "negatives", "negative"), {}, "could both be the negatives"),
        (("query", "positive", "negatives", "negative_1"), {}, "could both be the negatives; say"),
        (("sentence1", "sentence2", "score"), {}, "come with a score, so that not every pair"),
        (("sentence1", "sentence2", "label"), {}, "come with a label"),
        (("image", "file", "text"), {}, "no column is the query or the positive"),
        (("image", "video", "text"), {}, "no column is the query or the positive"),
        (("query", "positive", "query_videos"), {}, "did you mean 'query_video'"),
        (("a", "b"), {"query": "a", "positive": "c"}, "positive='c': there is no such column"),
        (("ask", "b"), {"query": "aks", "positive": "b"}, "did you mean 'ask'"),
        (("a", "b"), {"query": "a"}, "no column is the positive"),
    ],
)
def test_what_is_not_recognised(columns, chosen, reason):
    with pytest.raises(ValueError, match=reason):
        recognise(columns, chosen)


def test_without_a_schema_later_rows_may_have_what_is_optional():
    form = recognise(("query", "positive"), {}, has_schema=False)
    assert form.negatives == Side("negatives", "negatives_image", video="negatives_video")
    assert (form.query.image, form.scores, form.id) == ("query_image", "scores", "id")
    named = recognise(("query", "positive"), {"negatives": "hard"}, has_schema=False)
    assert named.negatives.text == "hard"
    numbered = recognise(("query", "positive", "negative_1"), {}, has_schema=False)
    assert numbered.negatives == Side() and numbered.numbered == ("negative_1",)
    with pytest.raises(ValueError, match="positive='hard': there is no such column"):
        recognise(("query",), {"positive": "hard"}, has_schema=False)

    # Keys of the config
    check_keys(dict.fromkeys(COLUMN_KEYS, "a"), "config.data.columns")
    with pytest.raises(ValueError, match="config.data.columns.negative; did you mean negatives"):
        check_keys({"negative": "a"}, "config.data.columns")
    with pytest.raises(ValueError, match='columns.query is ""; it must name a column'):
        check_keys({"query": ""}, "config.data.columns")
