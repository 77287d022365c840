"""Every format in every row form gives the same examples; what is no pair is said, row by row."""

import base64
import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.data.formats.writers import WRITERS, table, write_csv, write_jsonl, write_parquet
from tests.tables import for_each
from unime_jax.data.pairs import open_pairs, with_form
from unime_jax.data.quarantine import BadExample
from unime_jax.data.schema import to_example


def png(color="red"):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, "PNG")
    return file.getvalue()


def files_in(folder):
    """Three pictures, which rows name by their paths."""
    (folder / "images").mkdir()
    for name, color in (("q", "red"), ("p", "green"), ("n", "blue")):
        (folder / "images" / f"{name}.png").write_bytes(png(color))
    return folder


def examples(path, columns=None):
    """The examples of the only source."""
    ((name, rows),) = open_pairs(path, columns or {}).items()
    return [to_example(name, rows[index], str(index)) for index in range(len(rows))]


def content(example):
    """All that is trained on."""
    items = (example.query, example.positive, *example.negatives)
    sides = tuple((item.text, tuple(media.data for media in item.media)) for item in items)
    return example.id, sides, example.scores


TEXTS = ['größe, "in\nquotes"', "\u2028 two", "[3]", "four", "five", "six", "seven"]


def rows_of(form):
    """The rows of a form, and `data.columns`."""
    rows = []
    for i, text in enumerate(TEXTS):
        negatives = [f"{text} no {n}" for n in range(i % 3)]
        scores = [0.5, 0.25, 0.125][: 1 + len(negatives)] if i % 2 else []
        values = {"id": f"r{i}", "scores": scores}
        if form == "documented":
            values |= {"query": text, "positive": f"{text} yes", "negatives": negatives}
        elif form == "MMEB":
            values |= {"qry": text, "pos_text": f"{text} yes", "neg_text": negatives}
            values |= {"qry_image_path": "", "pos_image_path": "", "neg_image_path": []}
        elif form == "sentence-transformers":
            values |= {"anchor": text, "positive": f"{text} yes"}
            values |= {f"negative_{n + 1}": "" for n in range(2)}
            values |= {f"negative_{n + 1}": no for n, no in enumerate(negatives)}
        else:
            values |= {"a": text, "b": f"{text} yes", "c": negatives, "key": f"r{i}"}
            del values["id"]
        rows.append(values)
    chosen = {"query": "a", "positive": "b", "negatives": "c", "id": "key"}
    return rows, chosen if form == "named" else {}


FORMS = ("documented", "MMEB", "sentence-transformers", "named")


@pytest.fixture(scope="module")
def expected():
    """The documented form, as a list of dicts in MMEB-train's columns."""
    rows, _ = rows_of("documented")
    mmeb = [
        {
            "id": row["id"],
            "qry": row["query"],
            "pos_text": row["positive"],
            "neg_text": row["negatives"],
            "scores": row["scores"],
        }
        for row in rows
    ]
    return [content(to_example("pairs", row)) for row in mmeb]


@for_each("format", WRITERS)
@for_each("form", FORMS)
def test_every_format_in_every_form_gives_the_same_examples(tmp_path, expected, form, format):
    rows, columns = rows_of(form)
    folder = tmp_path / form
    folder.mkdir()
    path = WRITERS[format](folder, rows)
    assert list(open_pairs(path, columns)) == ["pairs"]
    assert [content(example) for example in examples(path, columns)] == expected
    again = pickle.loads(pickle.dumps(open_pairs(path, columns)["pairs"]))  # as in a worker
    assert content(to_example("pairs", again[-1], "")) == expected[-1]


def test_images_by_path_bytes_base64_as_hugging_face_has_them_and_in_tars(tmp_path):
    folder = files_in(tmp_path)
    plain = base64.b64encode(png()).decode()
    given = {
        "path": "images/q.png",
        "list": ["images/q.png"],
        "base64": plain,
        "base64 in lines": plain[:40] + "\n" + plain[40:],
        "URI": f"data:image/png;base64,{plain}",
        "dict of a path": {"path": "images/q.png"},
        "dict with null": {"path": "images/q.png", "bytes": None},
    }
    rows = [{"query": {"text": "?", "image": image}, "positive": "yes"} for image in given.values()]
    rows.append({"query": {"image": "images/q.png"}, "positive": "yes"})
    rows.append({"query": "?", "query_image": "images/q.png", "positive": "yes"})
    read = examples(write_jsonl(folder, rows))
    assert [e.query.text for e in read] == ["?"] * len(given) + ["", "?"]
    assert all([media.data for media in e.query.media] == [png()] for e in read)
    assert read[0].query.media[0].path == "images/q.png"
    stored = [{"query": {"bytes": png(), "path": "a.png"}, "positive": "yes"}]  # ST's way
    stored[0]["positive_image"] = png("green")
    (example,) = examples(write_parquet(folder, stored))
    assert example.query.media[0].data == png() and example.query.media[0].path == "a.png"
    assert (example.positive.text, example.positive.media[0].data) == ("yes", png("green"))

    (tmp_path := tmp_path / "next").mkdir()
    # Pictures with captions.
    for shard in range(2):
        with tarfile.open(tmp_path / f"cc-{shard:05d}.tar", "w") as file:
            for row, ending in enumerate(("jpg", "png")):
                values = {"caption": "other", "width": 8}  # as of img2dataset
                members = {ending: png(), "txt": f"{shard} {row}".encode()}
                members["json"] = json.dumps(values).encode()
                for name, data in members.items():
                    member = tarfile.TarInfo(f"{shard}/{row:03d}.{name}")
                    member.size = len(data)
                    file.addfile(member, io.BytesIO(data))
    sources = open_pairs(tmp_path, {})
    assert {name: len(rows) for name, rows in sources.items()} == {"cc": 4}
    read = [to_example("cc", sources["cc"][i]) for i in range(4)]
    assert [e.positive.text for e in read] == ["0 0", "0 1", "1 0", "1 1"]
    assert read[3].query.media[0].data == png() and read[3].id == "cc-00001.tar 1/001"

    # Images that a row names are its members.
    (tmp_path := tmp_path / "named").mkdir()
    row = {"query": {"text": "?", "image": "left.png"}, "positive": {"image": "right.png"}}
    path = WRITERS["tar"](tmp_path, [row | {"left.png": png(), "right.png": png("green")}])
    (example,) = examples(path)
    assert example.query.media[0].data == png()
    assert example.positive.media[0].data == png("green")
    WRITERS["tar"](tmp_path, [row])
    with pytest.raises(BadExample, match="example '0000': query: the row has no image 'left.png'"):
        examples(path)


def test_several_images_a_side_and_of_negatives(tmp_path):
    folder = files_in(tmp_path)
    both = ["images/q.png", "images/p.png"]
    row = {
        "query": {"text": "<|image_1|> or <|image_2|>?", "images": both},
        "positive": {"text": "this", "image": "images/p.png"},
        "negatives": ["that", {"image": "images/n.png"}, {"text": "both", "images": both}],
    }
    flat = {
        "query": row["query"]["text"],
        "query_image": both,
        "positive": "this",
        "positive_image": "images/p.png",
        "negatives": ["that", "", "both"],
        "negatives_image": [[], ["images/n.png"], both],
    }
    nested, columns = examples(write_jsonl(folder, [row])), examples(write_jsonl(folder, [flat]))
    assert content(nested[0]) == content(columns[0])
    counts = [len(item.media) for item in (nested[0].query, *nested[0].negatives)]
    assert counts == [2, 0, 1, 2]
    assert nested[0].query.media[1].data == png("green")
    parquet = examples(write_parquet(folder, [flat | {"query": "<|image_1|> or <|image_2|>?"}]))
    assert content(parquet[0])[1] == content(nested[0])[1]


def test_rows_in_memory_as_numpy_arrays_or_in_mmebs_columns(tmp_path):
    # NumPy arrays, as pandas hands them over.
    row = {
        "qry": "q",
        "pos_text": "p",
        "neg_text": np.array(["a", "b"], object),
        "neg_image_path": np.array(["", ""], object),
        "scores": np.array([1.0, 0.5, 0.25]),
    }
    source = with_form(
        "s", [row], {"query": "qry", "positive": "pos_text", "negatives": "neg_text"}
    )
    example = to_example("s", source[0])
    assert [item.text for item in example.negatives] == ["a", "b"]
    assert example.scores == (1, 0.5, 0.25)

    # A list of dicts is in MMEB's columns already.
    source = [{"qry": "q", "pos_text": "p"}]
    assert with_form("s", source, {}) is source
    assert table(source).num_rows == 1
    assert with_form("s", [], {"query": "q"}) == []


def test_folders_of_mmeb_train_and_of_pictures_with_captions(tmp_path):
    # MMEB-train, as it lies on the hub.
    folder = files_in(tmp_path)
    row = {"qry": "<|image_1|>\nwhat?", "qry_image_path": "images/q.png", "pos_text": "Yes"}
    row |= {"pos_image_path": "", "neg_text": "No", "neg_image_path": ""}
    for subset in ("HatefulMemes", "OK-VQA"):
        (folder / subset).mkdir()
        for split in ("original", "diverse_instruction"):
            name = f"{split}-00000-of-00001.parquet"
            write_parquet(folder / subset, [row | {"qry": subset}], name)
    sources = open_pairs(folder, {})
    assert sorted(sources) == [
        f"{subset}/{split}"
        for subset in ("HatefulMemes", "OK-VQA")
        for split in ("diverse_instruction", "original")
    ]
    example = to_example("x", sources["OK-VQA/original"][0])
    assert example.query.text == "OK-VQA" and example.query.media[0].data == png()
    assert [item.text for item in example.negatives] == ["No"]

    # Pictures with captions.
    (tmp_path := tmp_path / "captions").mkdir()
    folder = files_in(tmp_path)
    rows = [{"file_name": "q.png", "caption": "a red one"}]
    write_jsonl(folder / "images", rows, "captions.jsonl")
    for path in (folder, folder / "images", folder / "images" / "captions.jsonl"):
        sources = open_pairs(path, {})
        assert list(sources) == ["images"]
        example = to_example("images", sources["images"][0])
        assert example.query.media[0].data == png() and example.positive.text == "a red one"
    turned = {"query": "caption", "positive_image": "file_name"}
    (example,) = examples(folder / "images", turned)
    assert example.query.text == "a red one" and example.positive.media[0].data == png()


GOOD = {"query": "q", "positive": "p", "negatives": ["n"]}
BAD = {
    "no positive": ({"positive": ""}, "no positive: positive is empty"),
    "null positive": ({"positive": None}, "no positive: positive is empty"),
    "a number": ({"query": 5}, "query: it is a int, 5; it must be a text, or"),
    "several positives": ({"positive": ["a", "b"]}, "positive is a list of 2"),
    "a typo in an item": ({"query": {"txt": "q"}}, """'txt' is no key.*did you mean "text\""""),
    "a missing video": ({"query": {"video": "a.mp4"}}, "query: clip is missing: there is no file"),
    "image and images": ({"query": {"image": "a", "images": ["b"]}}, "give one of them"),
    "a text of numbers": ({"query": {"text": 3}}, 'its "text" is a int'),
    "a URL": ({"query": {"image": "https://a.b/c.png"}}, "is a URL, and nothing is fetched"),
    "out of the folder": ({"query": {"image": "../a.png"}}, "leaves the image folder"),
    "absolute": ({"query": {"image": "/etc/passwd"}}, "leaves the image folder"),
    "no file": ({"query": {"image": "absent.png"}}, "query: image is missing: there is no file"),
    "base64 cut off": ({"query": {"image": "data:image/png;base64,abc"}}, "no base64"),
    "an image dict": ({"query": {"image": {"url": "x"}}}, """must have "bytes", "path" or both"""),
    "an image of a number": ({"query": {"image": 3}}, "an image is a int; it must be a path"),
    "no image in a list": ({"query": {"images": ["a.png", ""]}}, "neither a path nor bytes"),
    "images twice": (
        {"query": {"image": "a.png"}, "query_image": "b.png"},
        "its column of images has others",
    ),
    "a negative": ({"negatives": ["n", 3]}, "negative 1: it is a int, 3"),
    "lengths": ({"negatives_image": ["a.png", "b.png"]}, r"have \[1, 2\] entries"),
    "scores": ({"scores": [1.0]}, "1 scores for a positive and 1 negatives"),
    "no number": ({"scores": [1.0, float("nan")]}, "a score is no finite number"),
    "an id": ({"id": ["a"]}, "its id is a list"),
    "not an object": (None, "a row is a JSON object"),
}


@for_each("name", BAD)
def test_a_bad_row_is_named_by_its_line(tmp_path, name):
    change, reason = BAD[name]
    row = None if change is None else GOOD | change
    full = GOOD | {"query_image": "", "negatives_image": [], "scores": [], "id": ""}
    path = write_jsonl(tmp_path, [full, row])
    rows = open_pairs(path, {})["pairs"]
    assert to_example("pairs", rows[0]).query.text == "q"
    with pytest.raises(BadExample, match=reason) as caught:
        to_example("pairs", rows[1], "1")
    item = caught.value.item
    assert (item.source, item.id) == ("pairs", "1" if name == "an id" else "line 2")
    read_late = ("a URL", "out of the folder", "absolute", "no file", "a missing video")
    assert item.path == (next(iter(change["query"].values())) if name in read_late else "")


def test_negatives_and_their_scores_by_number_and_in_lists(tmp_path):
    # Scores go by the places of numbered negatives, or by those that there are.
    row = {"query": "q", "positive": "p", "negative_1": "", "negative_2": "b", "negative_3": "c"}
    for scores, kept in (([9, 1, 2, 3], (9, 2, 3)), ([9, 2, 3], (9, 2, 3))):
        (example,) = examples(write_jsonl(tmp_path, [row | {"scores": scores}]))
        assert [item.text for item in example.negatives] == ["b", "c"] and example.scores == kept
    with pytest.raises(BadExample, match="2 scores for a positive and 2 negatives"):
        examples(write_jsonl(tmp_path, [row | {"scores": [9, 1]}]))

    # Lists are JSON in the cells of CSV only.
    (tmp_path := tmp_path / "lists").mkdir()
    row = {"query": "q", "positive": "[1]", "negatives": '["a", "b"]', "scores": "[1, 0.5, 0]"}
    (example,) = examples(write_csv(tmp_path, [row]))
    assert example.positive.text == "[1]" and example.scores == (1, 0.5, 0)
    assert [item.text for item in example.negatives] == ["a", "b"]
    (example,) = examples(write_csv(tmp_path, [row | {"negatives": "[2]", "scores": ""}]))
    assert [item.text for item in example.negatives] == ["[2]"]
    (example,) = examples(write_jsonl(tmp_path, [row | {"scores": []}]))
    assert [item.text for item in example.negatives] == ['["a", "b"]']


def test_columns_without_a_side(tmp_path):
    # Other columns are not read.
    rows = [{"query": "q", "positive": "p", "embedding": [0.5] * 8}]
    for path in (write_parquet(tmp_path, rows), WRITERS["saved"](tmp_path, rows)):
        source = open_pairs(path, {})["pairs"]
        assert to_example("pairs", source[0]).query.text == "q"
        assert "embedding" not in source.rows[0]

    # An unnamed column of pandas is none.
    (tmp_path / "pairs.csv").write_text(",query,positive\n0,q,p\n")
    (example,) = examples(tmp_path / "pairs.csv")
    assert example.query.media == () and example.id == "line 2"

    # A key that the first rows do not have must have a documented name.
    (tmp_path := tmp_path / "later").mkdir()
    rows = [{"query": "q", "positive": "p"}] * 101
    rows += [{"query": "q", "positive": "p", "negatives": ["n"], "scores": [1, 0.5]}]
    rows += [{"query": "q", "positive": "p", "negative": ["n"]}]
    read = open_pairs(write_jsonl(tmp_path, rows), {})["pairs"]
    assert len(to_example("pairs", read[101]).negatives) == 1  # by the documented name
    with pytest.raises(BadExample, match="'negative' is a key that the first 100 rows do not"):
        read[102]
