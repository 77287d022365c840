"""A dataset on disk with everything that picture files can be: what is good trains, the rest is
named, and no process's batch has another shape for it.
"""

import functools
import io
import itertools
import json
import zlib

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tests.backbones.images import encoded, noise
from tests.tables import for_each
from unime_jax.backbones.preprocessing.images import decode_images
from unime_jax.batch import Row
from unime_jax.data.formats import open_dataset
from unime_jax.data.loader import make_loader
from unime_jax.data.quarantine import Quarantine
from unime_jax.data.shapes import Bucket, Layout, pair_shapes

ROWS, BATCH = 400, 16
SIZE = 4  # pixels a side, that all images are brought to
LAYOUT = Layout(patches=1, patch_bytes=SIZE * SIZE * 3)
PLAN = pair_shapes([Bucket(2, 0), Bucket(2, 1)], LAYOUT, batch_size=BATCH, chunk_size=8)


def bomb() -> bytes:
    """A PNG that says it has 3.6 gigapixels."""
    data = bytearray(encoded(noise(8, 8)))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def large() -> bytes:
    """70 megapixels in a few kilobytes, all of them there."""
    return encoded(Image.new("1", (10_000, 7_000)))


def animated(format: str) -> bytes:
    frames = [noise(9, 7, seed=seed) for seed in range(3)]
    options = {"lossless": True} if format == "WEBP" else {}
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)


BAD = {  # row -> image, a word of the reason
    11: (encoded(noise(64, 64), "JPEG")[:900], "truncated"),
    64: (b"<html>404 Not Found</html>", "identify"),
    120: (encoded(noise(32, 32))[:200], "cannot be decoded"),
    187: (bytes(2000), "identify"),
    201: (b"", "missing"),
    202: (b"", "missing"),
    203: (b"", "missing"),
    333: (b"", "missing"),
    350: (bomb(), "DecompressionBomb"),
    399: (large(), "10000 x 7000 pixels"),
}
GREY16 = np.arange(63, dtype=np.uint16).reshape(7, 9) * 1000
ODD = {  # row -> image, the same in RGB by other means
    5: (encoded(noise(9, 7, "CMYK"), "JPEG"), None),
    17: (encoded(Image.fromarray(GREY16)), Image.fromarray((GREY16 // 256).astype(np.uint8))),
    31: (animated("WEBP"), noise(9, 7)),
    49: (animated("GIF"), None),
    66: (encoded(noise(1, 1)), noise(1, 1)),
    88: (encoded(noise(9, 7, "LA")), None),
    93: (encoded(noise(9, 7).quantize(8)), None),
    107: (encoded(noise(9, 7, "L"), "BMP"), noise(9, 7, "L")),
}


def image_of(row: int) -> bytes:
    return (BAD | ODD)[row][0] if row in BAD | ODD else encoded(noise(6, 5, seed=row))


class Pictures(tfds.core.GeneratorBasedBuilder):
    """Rows of an image and a text, in MMEB-train's columns."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        features = dict.fromkeys(("id", "qry", "qry_image_path", "pos_text"), text)
        features["qry_image"] = tfds.features.Tensor(shape=(), dtype=np.object_)
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, description="rows", features=features)

    def _split_generators(self, dl_manager):
        return {"pictures": self._generate_examples()}

    def _generate_examples(self):
        for i in range(ROWS):
            yield (
                i,
                {
                    "id": f"row{i}",
                    "qry": "<|image_1|>",
                    "qry_image_path": f"{i}.png",
                    "pos_text": f"text {i}",
                    "qry_image": image_of(i),
                },
            )


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    Pictures.pkg_dir_path = tmp_path_factory.mktemp("code")
    builder = Pictures(
        data_dir=tmp_path_factory.mktemp("tfds"), file_format=tfds.core.FileFormat.ARRAY_RECORD
    )
    builder.download_and_prepare()
    return open_dataset(builder.data_path)


def preprocess(item):
    images = decode_images(item, (SIZE, SIZE))
    number = int("".join(filter(str.isdigit, item.media[0].path if item.media else item.text)))
    zero = np.zeros((1, 1), np.int32)
    pixels = np.stack([np.asarray(image).reshape(1, -1) for image in images]) if images else None
    return Row(np.full(1, number, np.int32), zero, zero - 1, patches=pixels)


def loader(rows, process=0, processes=1):
    return make_loader(
        rows,
        {"pictures": 1.0},
        batch_size=BATCH,
        source_run=0,
        seed=0,
        preprocess=preprocess,
        shapes=PLAN,
        process_index=process,
        process_count=processes,
    )


@functools.cache
def epoch(key, processes):
    """The (Batch, PackInfo) of each process by step."""
    parts = [loader(key.rows, p, processes) for p in range(processes)]
    return [[next(part) for part in parts] for _ in range(ROWS // BATCH)]


@pytest.fixture(scope="module")
def steps(rows):
    key = type("Key", (), {"rows": rows})
    return functools.partial(epoch, key)


def shapes(batch):
    return jax.tree.map(lambda x: (x.shape, x.dtype), batch)


@for_each("processes", [1, 2, 4])
def test_every_batch_has_one_shape_and_the_list_names_each_once(steps, processes, tmp_path):
    lists = [
        Quarantine(tmp_path / "quarantine.jsonl", max_share=0.1, process_index=p)
        for p in range(processes)
    ]
    for parts in steps(processes):
        assert len({str(shapes(batch)) for batch, _ in parts}) == 1
        assert str(shapes(parts[0][0])) == str(shapes(steps(processes)[0][0][0]))
        for own, (batch, info) in zip(lists, parts, strict=True):
            assert batch.query.shape == (BATCH // processes,)
            own.note(info.bad)
            own.count(sum(len(i.bad) for _, i in parts), sum(i.read for _, i in parts))
    lists[0].merge()
    lists[0].merge()
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    found = {line["id"]: line for line in lines}
    assert len(lines) == len(found) and found.keys() == {f"row{i}" for i in BAD}
    for i, (_, word) in BAD.items():
        line = found[f"row{i}"]
        assert line.keys() == {"source", "id", "path", "reason"}
        assert (line["source"], line["path"]) == ("pictures", f"{i}.png")
        assert word in line["reason"]


def test_any_number_of_processes_reads_the_same(steps):
    def read(processes):
        return [
            {int(n) for batch, _ in parts for group in batch.groups for n in group.tokens.flat}
            for parts in steps(processes)
        ]

    assert read(1) == read(2) == read(4)

    # Odd images are used as what they show
    pixels = {}
    for batch, _ in itertools.chain(*steps(1)):
        group = batch.groups[1]
        live = group.live
        numbers = group.tokens[live][:, 0]
        pixels |= dict(zip(numbers.tolist(), group.patches[live].reshape(-1, SIZE, SIZE, 3)))
    assert not pixels.keys() & BAD.keys()
    assert pixels.keys() == set(range(ROWS)) - BAD.keys()
    for i, (data, same) in ODD.items():
        image = same or Image.open(io.BytesIO(data))
        if image.mode in ("LA", "RGBA"):
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        expected = image.convert("RGB").resize((SIZE, SIZE))
        np.testing.assert_array_equal(pixels[i], np.asarray(expected), err_msg=str(i))
        assert pixels[i].std() > 0 or i == 66


def test_too_many_stop_all_processes_at_the_same_step(steps, tmp_path):
    """Whichever of them has read the bad examples."""
    stopped = []
    for process in range(4):
        own = Quarantine(tmp_path / "q.jsonl", 0.02, min_read=32, process_index=process)
        for number, parts in enumerate(steps(4)):
            own.note(parts[process][1].bad)
            try:
                own.count(sum(len(i.bad) for _, i in parts), sum(i.read for _, i in parts))
            except ValueError as error:
                assert "were unusable, more than the limit of 2.0%" in str(error)
                stopped.append(number)
                break
    assert len(stopped) == 4 and len(set(stopped)) == 1
