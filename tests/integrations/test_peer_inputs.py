"""Items as other libraries take them, and what their models cannot take is refused by name."""

import contextlib
import io

import numpy as np
import pytest
from mteb.models.model_meta import ModelMeta
from PIL import Image

from experiments import evaluate
from tests.tables import for_each
from unime_jax import config, config_reader
from unime_jax.batch import Item, Media
from unime_jax.integrations import mteb_peers, peer_inputs
from unime_jax.integrations import sentence_transformers as st_integration
from unime_jax.jobs import evaluated_model


def media(name="a.png", kind="image"):
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(file, "PNG")
    return Media(name, file.getvalue(), kind)


class Peer:
    """A model that gives a text its length, and an image (or several) a vector of its own."""

    def __init__(self, *modalities, both=True):
        self.modalities, self.both, self.calls = modalities, both, []
        names = [name for name in modalities if isinstance(name, str)]
        self.mteb_model_meta = ModelMeta.create_empty({"modalities": names, "name": "a/b"})

    def supports(self, modality):
        return self.both if isinstance(modality, tuple) else modality in self.modalities

    def truncate_embeddings(self, dim):
        assert dim is None
        return contextlib.nullcontext()

    def encode(self, inputs, *, prompt=None, batch_size, **options):
        rows = inputs
        if prompt is None:  # by mteb
            batches = list(inputs)
            assert all(set(batch) == set(inputs.dataset.features) for batch in batches)
            assert all(len(next(iter(batch.values()))) <= batch_size for batch in batches)
            rows = [dict(zip(b, row)) for b in batches for row in zip(*b.values())]
        self.calls.append(rows)
        return np.array([self._vector(row) for row in rows], np.float32)

    def _vector(self, row):
        row = {"text": row} if isinstance(row, str) else row
        return [len(row.get("text", "")), 3.0 if "image" in row else 0.0]


ITEMS = [
    Item("<|image_1|>\nWhat is it? ", (media(),)),
    Item(" as it is "),
    Item("<|image_1|>", (media(),)),
    Item("a.png", prefix="see ", suffix="!"),
]


@for_each("library", ["sentence_transformers", "mteb"])
def test_markers_are_left_out_and_modalities_are_columns(library, monkeypatch):
    monkeypatch.setattr(peer_inputs, "WINDOW", 1)
    make = st_integration.encoder if library == "sentence_transformers" else mteb_peers.encoder
    peer = Peer("text", "image")
    found = make(peer, batch_size=2)(ITEMS)
    np.testing.assert_array_equal(found, [[11, 3], [10, 0], [0, 3], [10, 0]])
    rows = [row for call in peer.calls for row in call]
    assert len(rows) == 4 and {"text": "see a.png!"} in rows
    assert sorted(tuple(sorted(row)) for row in rows) == [
        ("image",), ("image", "text"), ("text",), ("text",)
    ]  # fmt: skip

    # Late fusion: unit vectors of both, added, of length 1 again
    fused = make(Peer("text", "image", both=False), batch_size=2, late_fusion=True)(ITEMS)
    np.testing.assert_allclose(fused[0], [0.5**0.5, 0.5**0.5], rtol=1e-6)
    np.testing.assert_allclose(fused[1:], [[1, 0], [0, 1], [1, 0]], rtol=1e-6)

    with pytest.raises(ValueError, match="item 'film' with clip 'a.mp4': .* images only"):
        make(peer, batch_size=2)([Item("film", (media("a.mp4", "clip"),))])
    with pytest.raises(ValueError, match="item 'a' with image 'b.png': .*identify the format"):
        make(peer, batch_size=2)([Item("a", (Media("b.png", b"no image"),))])
    with pytest.raises(ValueError, match="item '' with image 'a.png': .*(texts only|no image)"):
        make(Peer("text"), batch_size=2)([Item("x"), Item("", (media(),))])


def test_what_only_one_library_cannot_take(monkeypatch):
    with pytest.raises(ValueError, match="with image 'a.png': .* not both at once; late fusion"):
        st_integration.encoder(Peer("text", "image", both=False), batch_size=2)(ITEMS)
    several = Item("which?", (media("1.png"), media("2.png")))
    assert st_integration.encoder(Peer("text", "image"), batch_size=2)([several]).shape == (1, 2)
    with pytest.raises(ValueError, match="item 'which.*: 2 images; an item of mteb has one"):
        mteb_peers.encoder(Peer("text", "image"), batch_size=2)([several])
    texts = Peer("text")
    st_integration.encoder(texts, batch_size=2)([Item("photo.png")])
    assert texts.calls == [["photo.png"]], "a model of texts takes plain strings"

    # It is opened as the evaluate job's config says.
    given = {"max_length": 64, "dtype": "bfloat16", "batch_size": 4, "late_fusion": True}
    values = evaluate.get_config()
    values.update({"backbone": "a/b", "library": "sentence_transformers", **given})
    settings = config_reader.read(config.EvaluateConfig, values.to_dict())
    monkeypatch.setattr(st_integration, "open_peer", lambda source, **options: (source, options))
    opened = evaluated_model.open_model(settings)
    assert opened == ("a/b", {"revision": None, **given})
