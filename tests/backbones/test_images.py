"""Reading images: every kind of file, several of an item, fixed sizes, files that are broken."""

import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests.backbones.images import encoded, noise
from tests.tables import for_each
from unime_jax.backbones.preprocessing.images import decode_images, to_rgb
from unime_jax.backbones.preprocessing.processing import Processing, caveats, fixed_size
from unime_jax.batch import Item, Media

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "prompts" / "image_resize.json"


def test_an_image_is_its_colours_on_white_and_of_16_bits_the_upper_ones():
    # RGB images are not changed.
    image = noise(5, 4)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.asarray(image))

    # Transparency is laid on white.
    image = Image.new("RGBA", (3, 2), (200, 100, 0, 0))
    assert to_rgb(image).getcolors() == [(6, (255, 255, 255))]
    image = Image.new("P", (3, 2), 1)
    image.putpalette([200, 100, 0, 20, 10, 0])
    assert to_rgb(image).getcolors() == [(6, (20, 10, 0))]
    image.info["transparency"] = 1
    assert to_rgb(image).getcolors() == [(6, (255, 255, 255))]

    # Images come in the order of the item.
    images = [noise(5, 4, seed=seed) for seed in range(3)]
    media = tuple(Media(f"{i}.png", encoded(image)) for i, image in enumerate(images))
    found = decode_images(Item("", media), None)
    for ours, theirs in zip(found, images, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert decode_images(Item("text only"), None) == []

    # Of greys with 16 bits the upper ones are used
    for format in ["PNG", "TIFF"]:
        greys = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
        (image,) = decode_images(
            Item("", (Media("a", encoded(Image.fromarray(greys), format)),)), None
        )
        np.testing.assert_array_equal(np.asarray(image)[..., 0], greys // 256)
        assert image.mode == "RGB"


def fixed_sizes() -> list[tuple[int, int]]:
    recorded = json.loads(GOLDEN.read_text())
    entries = {**recorded["vlm2vec_v1"], **recorded["unime_v2_training"]}
    return sorted(tuple(size) for name, size in entries.items() if name != "other")


@for_each("size", [*fixed_sizes(), (30, 70)])
def test_a_fixed_size_is_pillows_default_resize(size):
    """The originals call Image.resize((width, height)): bicubic, aspect not kept."""
    images = [noise(130, 100), noise(41, 300)]
    media = tuple(Media(f"{i}.png", encoded(image)) for i, image in enumerate(images))
    found = decode_images(Item("", media), size)
    for ours, image in zip(found, images, strict=True):
        expected = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(expected))


def test_resolutions_have_vlm2vecs_names(monkeypatch):
    recorded = json.loads(GOLDEN.read_text())
    sizes = recorded["vlm2vec_v1"] | recorded["unime_v2_training"]
    for name in ("low", "mid", "mid_336", "high"):
        processing = Processing(prompt="raw", resolution=name)
        assert fixed_size(processing) == tuple(sizes[name])
        assert f"resized to {sizes[name][0]} x {sizes[name][1]}" in caveats(processing)[0]

    # Its rule for large sides leaves the others alone.
    assert sizes["other"] == "if max side > 1344: [1344, 1344], else unchanged"
    capped = Processing(prompt="raw", resolution="capped")
    images = [noise(1345, 8), noise(8, 1350), noise(1344, 8), noise(30, 40)]
    media = tuple(Media(f"{i}.png", encoded(image)) for i, image in enumerate(images))
    found = decode_images(Item("", media), fixed_size(capped))
    assert [image.size for image in found] == [(1344, 1344), (1344, 1344), (1344, 8), (30, 40)]
    expected = images[0].resize((1344, 1344), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(found[0]), np.asarray(expected))
    np.testing.assert_array_equal(np.asarray(found[2]), np.asarray(images[2]))
    assert "a side of more than 1344 pixels" in caveats(capped)[0]

    assert fixed_size(Processing(prompt="raw", image_size=(3, 4))) == (3, 4)
    with pytest.raises(
        ValueError, match="resolution is 'medium'; VLM2Vec's names are 'low', 'mid_3"
    ):
        fixed_size(Processing(prompt="raw", resolution="medium"))
    with pytest.raises(ValueError, match="are both sizes that images are resized to first"):
        Processing(prompt="raw", image_size=(3, 4), resolution="low")

    # Images that cannot be read are errors that name the path
    # Missing and broken images are errors that name the path.
    for data in (None, b""):
        with pytest.raises(ValueError, match="item 'x'.*the image file 'gone.png' is missing"):
            decode_images(Item("x", (Media("gone.png", data),)), None)
    data = encoded(noise(40, 40))
    for broken in (b"no image", data[:200]):
        with pytest.raises(ValueError, match="item 'x'.*the image 'bad.png' cannot be read"):
            decode_images(Item("x", (Media("bad.png", broken),)), None)
        with pytest.raises(ValueError, match="the image 'second.png' cannot be read"):
            decode_images(Item("x", (Media("a.png", data), Media("second.png", broken))), None)

    # A decompression bomb is an error.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    file = io.BytesIO(encoded(Image.new("RGB", (15, 15))))
    with pytest.raises(ValueError, match="the image 'bomb.png' cannot be read"):
        decode_images(Item("x", (Media("bomb.png", file.getvalue()),)), None)
