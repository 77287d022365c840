"""The one decoder: one picture from every kind of file and every way in, or a clear refusal."""

import contextlib
import io
import json
import os
import pathlib
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image

from tests.backbones.images import noise
from tests.data.image_files import GREY16, every_format, png, saved, smooth, tiff
from tests.tables import for_each
from unime_jax.backbones.preprocessing.images import decode_images
from unime_jax.batch import Item
from unime_jax.data import images
from unime_jax.data.images import ImageError, decode, read, read_below
from unime_jax.data.schema import to_example
from unime_jax.data.user_inputs import to_item
from unime_jax.evaluation.encoding.item_table import ItemTable, encode_table

ROOT = pathlib.Path(__file__).parents[2]


def grey(data: bytes) -> np.ndarray:
    pixels = np.asarray(decode(data))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


WIDE = {
    "png": saved(Image.fromarray(GREY16), "PNG"),
    "pgm": b"P5 64 40 65535\n" + GREY16.astype(">u2").tobytes(),
    "pgm by pillow": saved(Image.fromarray(GREY16.astype(np.int32)), "PPM"),
    "tiff": saved(Image.fromarray(GREY16), "TIFF"),
    "big-endian tiff": saved(Image.fromarray(GREY16.astype(">u2")), "TIFF"),
    "compressed tiff": saved(Image.fromarray(GREY16), "TIFF", compression="tiff_lzw"),
    "12-bit tiff": tiff(GREY16 >> 4, 12),
    "white is zero": tiff(65535 - GREY16, 16, more=((262, 1, 0),)),
    "16 bits in 32": saved(Image.fromarray(GREY16.astype(np.int32)), "TIFF"),
    "32 bits": tiff(GREY16.astype(np.uint32) << 16, 32),
    "31 bits": saved(Image.fromarray(GREY16.astype(np.int32) << 15), "TIFF"),
    "floats": saved(Image.fromarray(GREY16.astype(np.float32)), "TIFF"),
    "fractions": saved(Image.fromarray(GREY16 / np.float32(65535)), "TIFF"),
    "jpeg 2000": saved(Image.fromarray(GREY16), "JPEG2000"),
}


@for_each("kind", WIDE)
def test_more_than_8_bits_are_the_same_picture_in_every_format(kind):
    np.testing.assert_array_equal(grey(WIDE[kind]), GREY16 >> 8)
    assert grey(WIDE[kind]).max() == 249
    np.testing.assert_array_equal(images.to_rgb(opened(WIDE[kind])), decode(WIDE[kind]))


def test_strange_colours_and_numbers():
    # Floats of 8 bits are those bits.
    values = np.arange(256, dtype=np.float32).reshape(8, 32)
    for scale in (1, 1 / np.float32(255)):
        file = saved(Image.fromarray(values * scale), "TIFF")
        np.testing.assert_array_equal(grey(file), values)
    for bad in (np.nan, np.inf, 1e9):
        values[0, 0] = bad
        with pytest.raises(ImageError, match="grey values"):
            decode(saved(Image.fromarray(values), "TIFF"))

    # One grey of 16 bits that is transparent is white.
    pixels = saved(Image.fromarray(np.array([[1000, 20000]], np.uint16)), "PNG", transparency=1000)
    np.testing.assert_array_equal(grey(pixels), [[255, 20000 >> 8]])

    # Colours that Pillow cannot convert are refused.
    with pytest.raises(ImageError, match="its colours are LAB; convert it to RGB"):
        decode(saved(Image.new("LAB", (3, 3)), "TIFF"))

    # A palette in memory may have an alpha.
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 0, 40, 50, 60, 255], "RGBA")
    image.putdata([0, 1])
    assert "transparency" not in image.info
    np.testing.assert_array_equal(images.to_rgb(image), [[[255, 255, 255], [40, 50, 60]]])

    # Whole numbers in memory have a sign.
    for greys, expected in (
        ([-5, 300, 65535], [0, 1, 255]),
        ([-5, 2**30, 2**31 - 1], [0, 128, 255]),
    ):
        image = images.to_rgb(Image.fromarray(np.array([greys], np.int32)))
        assert [image.getpixel((x, 0))[0] for x in range(3)] == expected


@for_each("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"])
def test_other_modes_are_as_in_transformers_processors(mode):
    image = noise(20, 30).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    expected = convert_to_rgb(image, return_numpy=True)
    np.testing.assert_array_equal(np.asarray(images.to_rgb(image)), expected)


@for_each("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@for_each("orientation", range(1, 9))
def test_a_picture_is_upright_as_transformers_has_it(format, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(smooth(), format, exif=exif)
    (tmp_path / "a").write_bytes(data)
    expected = np.asarray(load_image(str(tmp_path / "a")))
    assert expected.shape == ((21, 13, 3) if orientation > 4 else (13, 21, 3))
    np.testing.assert_array_equal(np.asarray(decode(data)), expected)


def test_turns_are_those_of_exif_and_xmp():
    # Orientation in XMP counts and a damaged EXIF does not.
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert decode(saved(smooth(), "JPEG", xmp=xmp)).size == (13, 21)
    for exif in (b"Exif\0\0nothing", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        assert decode(saved(smooth(), "JPEG", exif=exif)).size == (21, 13)

    # Exif transpose is the oracle of turns.
    exif = Image.Exif()
    exif[0x0112] = 7
    image = opened(saved(smooth(), "PNG", exif=exif))
    np.testing.assert_array_equal(images.to_rgb(image), ImageOps.exif_transpose(image))


@for_each("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"])
def test_the_first_frame_is_read(format):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = saved(frames[0], format, save_all=True, append_images=frames[1:])
    assert getattr(opened(data), "n_frames", 1) == 2
    np.testing.assert_allclose(np.asarray(decode(data))[0, 0], (255, 0, 0), atol=2)


def test_honest_files_of_every_format_are_read_and_others_not_even_tried():
    # Every format that is read is read.
    found = {opened(data).format for data in every_format()}
    assert found == {*images._formats(), "MPO"} == {*images.FORMATS, "MPO"}
    assert all(decode(data).mode == "RGB" for data in every_format())

    # Honest files pass the same checks.
    assert decode(progressive(20)).size == (21, 13)
    video = np.random.default_rng(0).bytes(10_000_000)  # phones append one
    assert decode(saved(smooth(), "JPEG") + video).size == (21, 13)
    assert decode(saved(smooth(), "WEBP", exif=b"Exif\0\0" + greedy(1000))).size == (21, 13)

    # Other formats are not even tried
    for format in ["EPS", "ICO", "TGA", "PCX", "SGI", "ICNS", "PDF", "DDS"]:
        data = saved(Image.new("RGB", (32, 32)), format)
        with pytest.raises(
            ImageError, match="cannot identify the format; it must be one of JPEG, PNG"
        ):
            decode(data)


# Every way in.


def pixels_of(item: Item) -> np.ndarray:
    (image,) = decode_images(item, None)
    return np.asarray(image)


def phone_photo() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(smooth(), "JPEG", exif=exif)


SEEN = {
    "turned": phone_photo(),
    "16 bits": WIDE["pgm"],
    "32 bits": WIDE["32 bits"],
    "transparent": saved(noise(20, 30).convert("RGBA"), "PNG"),
    "animated": saved(noise(9, 7), "GIF", save_all=True, append_images=[noise(9, 7, seed=1)]),
    "cmyk": saved(noise(9, 7, "CMYK"), "JPEG"),
}


@for_each("kind", SEEN)
def test_a_file_is_one_picture_by_path_bytes_pil_row_and_in_evaluation(kind, tmp_path):
    data = SEEN[kind]
    (tmp_path / "a.img").write_bytes(data)
    expected = np.asarray(decode(data))
    row = {"qry": "<|image_1|>", "qry_image_path": "a.img", "qry_image": data, "pos_text": "x"}
    ways = [
        to_item({"image": str(tmp_path / "a.img")}),
        to_item({"image": tmp_path / "a.img"}),
        to_item({"image": data}),
        to_item({"image": opened(data)}),
        to_item(Image.open(tmp_path / "a.img")),
        to_item({"image": expected}),
        to_example("s", row).query,
    ]

    table = ItemTable(lambda path: read_below(tmp_path, path), "row {}".format)
    ways.append(table[table.add(("", "a.img"), 0)])
    assert len(ways) == 8
    for item in ways:
        np.testing.assert_array_equal(pixels_of(item), expected)


# Hostile files.


def directory(tags: list[tuple[int, int, int, int]], body: bytes) -> bytes:
    entries = b"".join(struct.pack("<HHLL", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + body


def greedy(count: int) -> bytes:
    """A TIFF directory, or EXIF, that names the same megabyte again and again."""
    return directory([(50000 + i, 7, 2**20, 100) for i in range(count)], bytes(2**20 + 30_000))


def progressive(scans: int) -> bytes:
    data = saved(smooth(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + b"\xff\xd9"


def gif(width: int, height: int) -> bytes:
    data = bytearray(saved(smooth(), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


BOMB = zlib.compress(bytes(50_000_000), 9)
HOSTILE = {
    "canvas": (gif(65000, 65000), "Image size"),
    "large canvas": (gif(10_000, 7_000), "image of 10000 x 7000 pixels, the limit is 64000000"),
    "text": (png([(b"zTXt", b"k\0\0" + BOMB)]), "too large"),
    "profile": (png([(b"iCCP", b"k\0\0" + BOMB)]), "too large"),
    "tags": (greedy(1000), "tags of .* bytes in"),
    "many tags": (greedy(3000), "a TIFF or EXIF directory of 3000 tags, the limit is 2000"),
    "exif": (
        b"\xff\xd8\xff\xe1\xff\xffExif\0\0" + greedy(3000)[:65527] + saved(smooth(), "JPEG")[2:],
        "3000 tags",
    ),
    "strips": (tiff(GREY16, 16, more=((273, 2**24, 8),)), "16777216 strips or tiles"),
    "tiles": (tiff(GREY16, 16, more=((322, 1, 2**20), (323, 1, 2**20))), "tiles of 1048576 x"),
    "scans": (progressive(200), "a JPEG of more than 100 scans"),
    "cut off": (saved(noise(40, 40), "PNG")[:900], "truncated"),
    "nothing": (b"", "cannot identify"),
}


@for_each("kind", HOSTILE)
def test_what_would_take_all_memory_or_time_is_refused_first(kind):
    data, message = HOSTILE[kind]
    with pytest.raises(ImageError, match=message):
        decode(data)


def test_the_limits_hold_for_every_way_in(monkeypatch, tmp_path):
    large = Image.new("1", (10_000, 7_000))
    (tmp_path / "a.png").write_bytes(saved(large, "PNG"))
    data = (tmp_path / "a.png").read_bytes()
    limit = "10000 x 7000 pixels, the limit is 64000000"
    for image in (large, tmp_path / "a.png", data):
        with pytest.raises(ValueError, match=limit):
            pixels_of(to_item({"image": image}))
    table = ItemTable(lambda path: read_below(tmp_path, path), "row {}".format)
    table.add(("", "a.png"), 0)
    with pytest.raises(ValueError, match=f"row 0: .*'a.png' cannot be read: .*{limit}; .*decoded"):
        encode_table("d", table, lambda items: [pixels_of(item) for item in items])
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    for image in (tmp_path / "a.png", data):
        with pytest.raises(ValueError, match="bytes, the limit is 1000"):
            pixels_of(to_item({"image": image}))
    for most, allowed in ((len(data), True), (len(data) - 1, False)):
        monkeypatch.setattr(images, "MAX_BYTES", most)
        with contextlib.nullcontext() if allowed else pytest.raises(ImageError):
            images.check(data, max_pixels=10**8)


@for_each("error", [struct.error, IndexError, SyntaxError, KeyError, MemoryError])
def test_whatever_a_decoder_raises_is_an_image_error(monkeypatch, error):
    def broken(*args, **kwargs):
        raise error("line\nbreak \u202e")

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(ImageError) as found:
        decode(b"...")
    assert f"{error.__name__.split('.')[-1]}: " in str(found.value)
    assert str(found.value).isprintable()


def fuzz(count: int, seed: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.data.fuzz_images", str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["decoded"] > count // 10 and found["refused"] > count // 10
    assert found["slowest"] < 5 and found["peak_mib"] < 1000
    return found


def test_thousands_of_damaged_files_end_in_a_picture_or_an_error():
    """In a process of its own, of bounded memory and with an alarm clock for every file."""
    fuzz(4_000, seed=0)


@pytest.mark.slow
def test_three_hundred_thousand_damaged_files():
    fuzz(300_000, seed=1)


# Paths.


def test_only_files_in_the_image_folder_are_read_and_no_urls(tmp_path):
    # Only files are read.
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 2**40)
    refused = {
        "pipe": "a device, pipe or socket, no file",
        "": "is a folder, no file",
        "large": "has 1099511627776 bytes, the limit is 268435456",
        "a\0b": "has a NUL",
    }
    for name, message in refused.items():
        with pytest.raises(ImageError, match=message):
            read(os.path.join(tmp_path, name))
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(ValueError, match="the image cannot be read: .* no file"):
            to_item({"image": device})
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nowhere.png")

    # Paths of a data set stay in the image folder.
    folder, secret = tmp_path / "images", tmp_path / "secret.png"
    (folder / "sub").mkdir(parents=True)
    for file in (secret, folder / "sub" / "a.png"):
        file.write_bytes(saved(smooth(), "PNG"))
    (folder / "inside.png").symlink_to(folder / "sub" / "a.png")
    (folder / "outside.png").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(folder)  # the folder itself may be one
    for root in (folder, tmp_path / "link"):
        assert (
            read_below(root, "sub/a.png") == read_below(root, "inside.png") == secret.read_bytes()
        )
        for path in (str(secret), "../secret.png", "sub/../../secret.png", "..\\secret.png"):
            with pytest.raises(ImageError, match="leaves the image folder"):
                read_below(root, path)
        for path in ("outside.png", "up/secret.png"):
            with pytest.raises(ImageError, match="leads out of the image folder, over a symbolic"):
                read_below(root, path)
        with pytest.raises(FileNotFoundError):
            read_below(root, "nowhere.png")
    table = ItemTable(lambda path: read_below(folder, path), "dataset 'd', row {}".format)
    table.add(("", "../secret.png"), 3)
    with pytest.raises(ValueError, match="^dataset 'd', row 3: image '../secret.png': the path"):
        encode_table("dataset 'd'", table, list)

    # A url must be downloaded first
    for url in [
        "https://a.org/b.png",
        "http:/a.org/b.png",
        "s3://bucket/b.png",
        "ftp://a.org/b.png",
    ]:
        for image in (url, pathlib.PurePosixPath(url)):
            with pytest.raises(
                ValueError, match="is a URL, and nothing is fetched.*download the image"
            ):
                to_item({"image": image})
        for named in (url, "data:image/png;base64,AA"):
            with pytest.raises(ImageError, match="is a URL"):
                read_below(tmp_path, named)
