"""Rows as examples: everything that can be wrong with a row is said, and nothing else is."""

import io
import subprocess
import sys

import cloudpickle
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tests.tables import for_each
from unime_jax.backbones.preprocessing.images import decode_images
from unime_jax.batch import Row
from unime_jax.data import schema
from unime_jax.data.formats import open_dataset
from unime_jax.data.formats.tfds import version_folder
from unime_jax.data.images import ImageError, check
from unime_jax.data.packing import prepare
from unime_jax.data.quarantine import BadExample
from unime_jax.data.schema import check_names, to_example
from unime_jax.data.shapes import Bucket, Layout, pair_shapes


def png(size=(8, 8), color="red"):
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def row(**changes):
    good = {
        "id": "7",
        "qry": "<|image_1|> what is it?",
        "qry_image_path": "a/7.png",
        "qry_image": png(),
        "pos_text": "a square",
        "pos_image_path": "",
        "pos_image": b"",
        "neg_text": ["a circle", "<|image_1|>"],
        "neg_image_path": ["", "n.png"],
        "neg_image": [b"", png(color="blue")],
    }
    return good | changes


def test_good_rows_in_every_form():
    # Good row.
    example = to_example("shapes", row())
    assert (example.source, example.id) == ("shapes", "7")
    assert example.query.key == ("<|image_1|> what is it?", "a/7.png")
    assert [image.data for image in example.query.media] == [png()]
    assert example.positive.key == ("a square", "") and example.positive.media == ()
    assert [item.key for item in example.negatives] == [("a circle", ""), ("<|image_1|>", "n.png")]

    # Bytes and arrays as TFDS gives them.
    encoded = row(
        id=b"7",
        qry="größe".encode(),
        qry_image_path=b"a/7.png",
        neg_text=np.array([b"x"], object),
        neg_image_path=np.array([b""], object),
        neg_image=np.array([b""], object),
    )
    example = to_example("shapes", encoded)
    assert example.id == "7" and example.query.text == "größe"
    assert [item.key for item in example.negatives] == [("x", "")]

    # One negative as plain text.
    plain = row(neg_text="no", neg_image_path="", neg_image=b"")
    assert [item.key for item in to_example("shapes", plain).negatives] == [("no", "")]

    # Own columns.
    columns = schema.Columns("question", "", "picture")
    own = schema.Schema(columns, schema.Columns("answer", "", ""), schema.Columns("", "", ""))
    example = to_example("s", {"question": "a", "picture": png(), "answer": b"b"}, "3", schema=own)
    assert (example.id, example.query.text, example.positive.text) == ("3", "a", "b")
    assert example.query.media[0].data and not example.negatives

    # Default id.
    nameless = row(qry_image=b"x", id="")
    with pytest.raises(BadExample) as caught:
        to_example("shapes", nameless, "12")
    assert caught.value.item.id == "12"

    # No negatives
    for negatives in [{}, {"neg_text": ""}, {"neg_text": [""]}, {"neg_text": []}]:
        bare = {name: value for name, value in row().items() if not name.startswith("neg_")}
        assert to_example("shapes", bare | negatives).negatives == ()


def test_images_of_a_row_are_looked_at_but_not_decoded_and_scores_are_of_its_candidates():
    # Orphan marker is not an error.
    example = to_example("webqa", row(qry="<|image_1|> who?", qry_image_path="", qry_image=b""))
    assert example.query.text == "<|image_1|> who?"

    # Image without path is named by its content.
    red, blue = (
        to_example("s", row(qry_image_path="", qry_image=png(color=color)))
        for color in ("red", "blue")
    )
    assert red.query.key != blue.query.key
    assert red.query.key == to_example("s", row(qry_image_path="", qry_image=png())).query.key

    # Pixels are not decoded here.
    cut = png((64, 64))[:80]
    assert to_example("shapes", row(qry_image=cut)).query.media[0].data == cut

    # Huge header is refused before decoding.
    data = bytearray(png())
    data[16:24] = (60_000).to_bytes(4, "big") * 2  # 3.6 gigapixels in a few bytes
    data[29:33] = __import__("zlib").crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(ImageError, match="DecompressionBomb"):
        check(bytes(data))
    check(png())

    # Scores are those of the candidates that there are.
    negatives = {"neg_text": ["no", "", "never"], "neg_image_path": [], "neg_image": []}
    example = to_example("s", row(**negatives, scores=[0.9, 0.5, 0.0, 0.25]))
    assert len(example.negatives) == 2 and example.scores == (0.9, 0.5, 0.25)
    assert to_example("s", row(**negatives)).scores == ()
    with pytest.raises(BadExample, match="column scores: 2 scores for a positive and 3 negatives"):
        to_example("s", row(**negatives, scores=[0.9, 0.5]))
    for wrong in (0.9, "high", ["a", "b", "c", "d"]):
        with pytest.raises(BadExample, match="column scores: "):
            to_example("s", row(**negatives, scores=wrong))


NO_IMAGE = {"qry_image_path": "", "qry_image": b""}
BAD = {
    "empty text": (row(qry=" ", **NO_IMAGE), "", "empty text and no image"),
    "only a marker": (row(qry="<|image_1|>\n", **NO_IMAGE), "", "empty text and no image"),
    "missing bytes": (row(qry_image=b""), "a/7.png", "missing"),
    "absent column": (row(qry_image=None), "a/7.png", "missing"),
    "not an image": (row(qry_image=b"<html>404</html>"), "a/7.png", "cannot be decoded"),
    "bomb": (row(qry_image=png((200, 200))), "a/7.png", "200 x 200 pixels"),
    "no positive": (row(pos_text="", pos_image_path=""), "", "no positive"),
    "absent positive": ({"id": "7", "qry": "text"}, "", "no positive"),
    "blank positive": (row(pos_text=" "), "", "positive: empty text"),
    "bad negative": (row(neg_image=[b"", b"x"]), "n.png", "negative 1: image cannot be decoded"),
    "not UTF-8": (row(qry=b"\xff\xfe"), "", "not UTF-8"),
}


@for_each("name", BAD)
def test_bad_row(name):
    bad, path, reason = BAD[name]
    with pytest.raises(BadExample) as caught:
        to_example("shapes", bad, max_pixels=10_000)
    item = caught.value.item
    assert (item.source, item.id, item.path) == ("shapes", "7", path)
    assert reason in item.reason
    assert cloudpickle.loads(cloudpickle.dumps(caught.value)).item == item


@for_each("image", [b"x", png((64, 64))[:80]])
def test_a_bad_negative_has_one_number_wherever_its_image_fails(image):
    """Headers fail here, pixels where rows are made; blank negatives are not counted."""

    def decode(item):
        decode_images(item, None)
        zero = np.zeros((1, 1), np.int32)
        return Row(zero[:, 0], zero, zero - 1)

    shapes = pair_shapes([Bucket(8, 0)], Layout(), batch_size=1, negatives=3, chunk_size=1)
    images = {"neg_image_path": ["", "", "n.png"], "neg_image": [b"", b"", image]}
    with pytest.raises(BadExample) as caught:
        prepare(to_example("s", row(neg_text=["no", "", ""], **images)), decode, shapes)
    assert caught.value.item.path == "n.png"
    assert caught.value.item.reason.startswith("negative 1: image cannot be decoded")


class TinyRows(tfds.core.GeneratorBasedBuilder):
    """Two splits in MMEB-train's form; one image column as an Image feature, one as bytes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text, bytes_ = tfds.features.Text(), tfds.features.Tensor(shape=(), dtype=np.object_)
        features = {
            "id": text,
            "qry": text,
            "qry_image_path": text,
            "qry_image": tfds.features.Image(encoding_format="png"),
            "pos_text": text,
            "pos_image_path": text,
            "pos_image": bytes_,
            "neg_text": tfds.features.Sequence(text),
            "neg_image_path": tfds.features.Sequence(text),
            "neg_image": tfds.features.Sequence(bytes_),
        }
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, description="rows", features=features)

    def _split_generators(self, dl_manager):
        return {"one": self._generate_examples(3), "two": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, row(id=str(i), qry_image=io.BytesIO(png()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    TinyRows.pkg_dir_path = tmp_path_factory.mktemp("code")
    builder = TinyRows(
        data_dir=tmp_path_factory.mktemp("tfds"), file_format=tfds.core.FileFormat.ARRAY_RECORD
    )
    builder.download_and_prepare()
    return builder.data_path


def test_a_data_set_is_its_folder_and_highest_version(folder, tmp_path):
    # Open dataset folder or version.
    for path in (folder, folder.parent):
        sources = open_dataset(path)
        assert {name: len(source) for name, source in sources.items()} == {"one": 3, "two": 2}
        examples = [to_example("one", sources["one"][i]) for i in range(3)]
        assert sorted(example.id for example in examples) == ["0", "1", "2"]
        assert all(Image.open(io.BytesIO(example.query.media[0].data)) for example in examples)
        assert examples[0].negatives[1].media[0].data == png(color="blue")

    # The highest version is that of numbers.
    for version in ("1.9.0", "1.10.0", "1.2.11"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "dataset_info.json").touch()
    assert version_folder(tmp_path) == tmp_path / "1.10.0"

    # Unknown source names its neighbours.
    with pytest.raises(ValueError, match=r"'ImageNet_1k' \(did you mean ImageNet_1K"):
        check_names(["WebQA", "ImageNet_1k"], ["ImageNet_1K", "WebQA"])
    with pytest.raises(ValueError, match="'zzz'. The dataset has WebQA"):
        check_names(["zzz"], ["WebQA"])
    check_names(["WebQA"], ["ImageNet_1K", "WebQA"])

    # Open dataset says what is missing.
    (tmp_path := tmp_path / "next").mkdir()
    with pytest.raises(FileNotFoundError, match="no data in"):
        open_dataset(tmp_path)

    # Open dataset needs no tensorflow
    code = (
        "import sys; from unime_jax.data import formats, loader; "
        f"formats.open_dataset({str(folder)!r})['one'][0]; "
        "sys.exit(bool({'tensorflow', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
