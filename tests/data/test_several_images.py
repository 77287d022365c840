"""Training data with several images an item, from columns on disk to rows of a batch."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.features.feature import TensorInfo

from tests.backbones.images import encoded, noise
from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder as write_onevision
from tests.backbones.tiny_phi3_v import write_phi3_v
from tests.backbones.tiny_qwen import write_qwen2_vl
from unime_jax.backbones import open_backbone
from unime_jax.backbones.preprocessing import images as preprocessing
from unime_jax.batch import Item, Media, Row
from unime_jax.data.formats import open_dataset
from unime_jax.data.loader import make_loader, read_example
from unime_jax.data.mixture import Pick
from unime_jax.data.quarantine import BadExample
from unime_jax.data.schema import to_example
from unime_jax.data.shapes import Bucket, pair_shapes
from unime_jax.data.user_inputs import to_item

FAMILIES = {
    "llava_onevision": write_onevision,
    "llava_next": write_llava_next,
    "qwen2_vl": write_qwen2_vl,
    "phi3_v": write_phi3_v,
}
CLIPS = ("llava_onevision", "qwen2_vl")  # those that take them
ROWS = 4
SIDES = {"query": "qry", "positive": "pos", "negative 0": "neg", "negative 1": "neg"}


def png(seed: int) -> bytes:
    return encoded(noise(30 + 7 * (seed % 3), 40, seed=seed))


def sides(number: int) -> dict[str, tuple[str, list[bytes]]]:
    """Text and images of each side of a row."""
    a, b, c, d, e = (png(5 * number + i) for i in range(5))
    return {
        "query": (f"{number}: is <|image_1|> left of <|image_2|>?", [a, b]),
        "positive": ("<|image_1|>\nthe answer", [c]),
        "negative 0": (f"no {number}", []),
        "negative 1": (f"<|image_1|> {number} or <|image_2|>", [d, e]),
    }


def columns(number: int, *, file=io.BytesIO) -> dict:
    """A row in MMEB-train's columns; lists of images, in negatives lists of lists."""
    row: dict = {"id": f"row{number}", "neg_text": [], "neg_image_path": [], "neg_image": []}
    for side, (text, images) in sides(number).items():
        name = SIDES[side]
        paths = [f"{number} {side} {i}.png" for i in range(len(images))]
        if name == "neg":
            row["neg_text"].append(text)
            row["neg_image_path"].append(paths)
            row["neg_image"].append([file(image) for image in images])
        elif name == "pos":
            row |= {"pos_text": text, "pos_image_path": paths[0], "pos_image": file(images[0])}
        else:
            row |= {"qry": text, "qry_image_path": paths, "qry_image": [*map(file, images)]}
    return row


class SeveralImages(tfds.core.GeneratorBasedBuilder):
    """Rows with lists of images, all of them Image features."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text, image, several = tfds.features.Text(), tfds.features.Image(), tfds.features.Sequence
        features = dict.fromkeys(("id", "qry", "pos_text", "pos_image_path"), text)
        features |= {"qry_image_path": several(text), "qry_image": several(image)}
        features |= {"pos_image": image, "neg_text": several(text)}
        features |= {"neg_image_path": several(several(text)), "neg_image": several(several(image))}
        features["pages"] = several({"page": image, "number": text})
        return tfds.core.DatasetInfo(
            builder=self, description="rows", features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {"several": self._generate_examples()}

    def _generate_examples(self):
        for number in range(ROWS):
            yield (
                number,
                columns(number) | {"pages": [{"page": io.BytesIO(b"scan"), "number": "1"}]},
            )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    SeveralImages.pkg_dir_path = tmp_path_factory.mktemp("code")
    builder = SeveralImages(
        data_dir=tmp_path_factory.mktemp("tfds"), file_format=tfds.core.FileFormat.ARRAY_RECORD
    )
    with pytest.MonkeyPatch.context() as patch:
        # Only to write lists of lists, TFDS asks TensorFlow, and only for the name of a dtype.
        patch.setattr(TensorInfo, "dtype", property(lambda info: info.np_dtype))
        builder.download_and_prepare()
    return builder.data_path


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    opened = {}
    for name, write in FAMILIES.items():
        folder = tmp_path_factory.mktemp(name)
        write(folder)
        opened[name] = open_backbone(str(folder), max_length=2048)
    return opened


def shapes_of(backbone, **sizes):
    buckets = [Bucket(512, 0), Bucket(2048, 16)]
    return pair_shapes(buckets, backbone.layout, negatives=2, chunk_size=2, **sizes)


def row_of(batch, number: int) -> dict[str, np.ndarray]:
    """The fields of a packed row, without its padding."""
    for group in batch.groups:
        chunks, rows = group.length.shape
        if number < chunks * rows:
            place = divmod(number, rows)
            fields = {"tokens": group.tokens, "positions": group.positions, "slot": group.slot}
            live = {name: field[place][: group.length[place]] for name, field in fields.items()}
            return live | ({} if group.patches is None else {"patches": group.patches[place]})
        number -= chunks * rows
    raise IndexError(number)


def check_row(found: dict[str, np.ndarray], expected: Row, name: str) -> None:
    for field in ("tokens", "positions", "slot"):
        np.testing.assert_array_equal(found[field], getattr(expected, field), f"{name}: {field}")
    assert ("patches" in found) == (expected.patches is not None), name
    if expected.patches is not None:
        tiles = len(expected.patches)
        np.testing.assert_array_equal(found["patches"][:tiles], expected.patches, name)
        assert not found["patches"][tiles:].any()


def test_rows_of_batches_are_those_that_an_embedder_makes(folder, backbones, monkeypatch):
    """In every family, from Image features in lists and in lists of lists; nothing is bad."""
    sources = open_dataset(folder)
    numbers = {to_example("s", sources["several"][i]).query.text[0]: i for i in range(ROWS)}
    assert sorted(numbers) == ["0", "1", "2", "3"]
    for family, backbone in backbones.items():
        loader = make_loader(
            sources,
            {"several": 1.0},
            batch_size=2,
            source_run=0,
            seed=0,
            preprocess=backbone.preprocess,
            shapes=shapes_of(backbone, batch_size=2),
        )
        expected = [
            {
                side: backbone.preprocess(to_item({"text": text, "image": images}))
                for side, (text, images) in sides(number).items()
            }
            for number in range(ROWS)
        ]
        seen = []
        for batch, info in (next(loader), next(loader)):
            assert (info.read, info.bad, info.unmatched_markers) == (2, (), 0), family
            for pair in zip(batch.query, batch.positive, batch.negative, strict=True):
                query, positive, (first, second) = pair
                tokens = row_of(batch, query)["tokens"].tolist()
                number = [row["query"].tokens.tolist() for row in expected].index(tokens)
                places = zip(sides(number), (query, positive, first, second), strict=True)
                for side, place in places:
                    name = f"{family}, row {number}, {side}"
                    check_row(row_of(batch, place), expected[number][side], name)
                seen.append(number)
        loader.close()
        assert sorted(seen) == [0, 1, 2, 3], family

    # Each image is decoded once
    decoded = []
    decode = preprocessing.decode
    monkeypatch.setattr(preprocessing, "decode", lambda data: decoded.append(data) or decode(data))
    number = ROWS + 1  # its images are in no batch of other tests, which are made ahead
    source = {"s": [columns(number, file=bytes)]}
    expected = [image for _, images in sides(number).values() for image in images]
    for family, backbone in backbones.items():
        decoded.clear()
        shapes = shapes_of(backbone, batch_size=1)
        read_example(source, Pick("s", 0), preprocess=backbone.preprocess, shapes=shapes, seed=0)
        assert [image for image in decoded if image in expected] == expected, family


def test_the_quarantine_names_the_image_that_is_bad(backbones):
    """Found in headers, among pixels or in its shape; of several images none of the good ones."""
    good, cut, line = png(0), encoded(noise(90, 90, seed=9))[:900], encoded(noise(1, 201))
    two = {"qry": "<|image_1|> or <|image_2|>?", "qry_image_path": ["a.png", "b.png"]}
    negative = {"neg_text": ["no"], "neg_image_path": [["c.png", "d.png"]]}
    cases = {
        "headers": (two | {"qry_image": [good, b"<html>"]}, "b.png", "query: image 2 of 2 cannot"),
        "pixels": (two | {"qry_image": [good, cut]}, "b.png", "query: image 2 of 2 cannot be dec"),
        "the first": (two | {"qry_image": [cut, good]}, "a.png", "query: image 1 of 2 cannot be"),
        "no bytes": (two | {"qry_image": [good, b""]}, "b.png", "query: image 2 of 2 is missing"),
        "a line": (two | {"qry_image": [good, line]}, "b.png", "image 2 of 2: an image of 201"),
        "no place": (
            two | {"qry_image_path": ["a.png", ""], "qry_image": [good, b""]},
            "",
            "query: image 2 of 2 is missing: there is no path and no bytes",
        ),
        "counts": (two | {"qry_image": [good]}, "", "query: 2 image paths, but 1 images"),
        "one more": (two | {"qry_image": [good] * 3}, "", "query: 2 image paths, but 3 images"),
        "pixels of a negative": (
            negative | {"neg_image": [[good, cut]]},
            "d.png",
            "negative 0: image 2 of 2 cannot be decoded: OSError",
        ),
        "too many for the buckets": (
            two | {"qry_image": [good, good]},
            "",
            "tiles do not fit the largest bucket",
        ),
    }
    backbone = backbones["qwen2_vl"]
    shapes = pair_shapes([Bucket(2048, 1)], None, batch_size=1, negatives=2, chunk_size=1)
    for name, (changes, path, reason) in cases.items():
        plain = {"id": "7", "qry": "what?", "pos_text": "yes"}
        rows = {"s": [plain | changes, plain]}
        read = read_example(
            rows, Pick("s", 0), preprocess=backbone.preprocess, shapes=shapes, seed=0
        )
        (bad,) = read.bad
        assert (bad.id, bad.path) == ("7", path), name
        assert reason in bad.reason, name


def test_columns_of_images_hold_a_value_or_a_list():
    a, b = png(0), png(1)
    media = (Media("a", a), Media("b", b))
    plain = {"qry": "x", "pos_text": "y"}

    def query(paths, images) -> Item:
        return to_example("s", plain | {"qry_image_path": paths, "qry_image": images}).query

    assert query(["a", "b"], [a, b]) == Item("x", media)
    assert query(("a", "b"), np.array([a, b], object)) == Item("x", media)
    assert query("a", [a]) == query(["a"], a) == query("a", a) == Item("x", media[:1])
    assert query([], []) == query([""], [b""]) == query(["", ""], None) == Item("x")
    nameless = query(None, [a, b])
    assert [image.data for image in nameless.media] == [a, b] and nameless == query("", [a, b])
    assert nameless.media[0].path == query("", a).media[0].path != nameless.media[1].path

    def negatives(texts, paths, images) -> tuple[Item, ...]:
        given = {"neg_text": texts, "neg_image_path": paths, "neg_image": images}
        return to_example("s", plain | given).negatives

    one, other = (Item("", (image,)) for image in media)
    assert negatives([], ["a", "b"], [a, b]) == (one, other), "a flat list: one image each"
    assert negatives([], [["a", "b"]], [[a, b]]) == (Item("", media),)
    assert negatives(["", "n"], [["a", "b"], []], [[a, b], []]) == (Item("", media), Item("n"))
    assert negatives(["", ""], [["", ""], ["a", "b"]], [[b"", b""], [a, b]]) == (Item("", media),)
    for wrong, reason in (
        ((["a", "b"], [a]), "2 image paths, but 1 images"),
        (("a", np.zeros((2, 2, 3), np.uint8)), "an image is a ndarray; it must be the bytes of a"),
        (("a", "a.png"), "an image is a str; it must be the bytes of a file"),
    ):
        with pytest.raises(BadExample, match=reason):
            query(*wrong)


def test_media_are_values_and_a_clip_is_refused(backbones):
    # Media are values known by their content.
    a, b = Media("a.png", b"1"), Media("b.png", b"1")
    assert a != b and a.identity == b.identity and a == Media("a.png", b"1") and len({a, b}) == 2
    kinds = {a.identity, Media("a.png", b"1", "clip").identity, Media("a.png", b"2").identity}
    assert len(kinds | {Media("a.png").identity}) == 4
    assert "\\x" not in repr(Item("x", (Media("a.png", png(0)),)))
    with pytest.raises(ValueError, match="neither a path nor content"):
        Media("")

    # A clip is refused by families that read images, and by others if it is none.
    item = Item("x", (Media("a.png", png(0)), Media("b.mp4", b"clip", "clip")))
    for family, backbone in backbones.items():
        why = "cannot be read: cannot identify" if family in CLIPS else "is a clip; this model"
        with pytest.raises(ValueError, match=f"item 'x'.*clip 'b.mp4'.*{why}") as e:
            backbone.preprocess(item)
        assert e.value.path == "b.mp4", family
