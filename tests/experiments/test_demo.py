"""The demo without its page: a folder's entries, search, maps, cards; and what to install."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from experiments import demo_search
from experiments.demo_search import MINI, Entry, Searcher, Searchers, Wording
from unime_jax.data import images


class ColourEmbedder:
    """Embeds pictures by their mean colour, and texts by the colour they name."""

    dimension = 3

    def __init__(self):
        self.prompts: list[tuple[str, str]] = []

    def encode(self, items, prompt="", suffix=""):
        self.prompts.append((prompt, suffix))
        single = isinstance(items, dict)
        vectors = np.stack([self._vector(item) for item in ([items] if single else items)])
        return vectors[0] if single else vectors

    encode_query = encode_document = encode

    def _vector(self, item):
        vector = np.full(3, 1e-3, np.float32)
        for place, colour in enumerate(("red", "green", "blue")):
            vector[place] += colour in item.get("text", "")
        image = item.get("image")
        if image is not None:
            is_path = not isinstance(image, np.ndarray | Image.Image)
            pixels = np.asarray(images.decode(images.read(image)) if is_path else image)
            vector += pixels.reshape(-1, 3).mean(0) / 255
        return vector / np.linalg.norm(vector)


def test_entries_search_maps_and_cards(tmp_path):
    for damaged in ((), ("a.png",)):
        for name in damaged:
            (tmp_path / name).write_bytes(b"no picture")
        with pytest.raises(ValueError, match="no pictures that can be read"):
            demo_search.entries_of(tmp_path)
    (tmp_path / "a.png").unlink()
    (tmp_path / "below").mkdir()
    pixels = np.full((40, 80, 3), 128, np.uint8)
    pixels[10:20, 60:70] = 255, 0, 0
    Image.fromarray(pixels).save(tmp_path / "below" / "dot.PNG")
    for colour in ("green", "blue"):
        Image.new("RGB", (9, 20), colour).save(tmp_path / f"{colour}.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "lines.txt").write_text("a red dot\n\n  blue  \n")
    entries = demo_search.entries_of(tmp_path)
    names = [entry.name for entry in entries]
    assert names == ["below/dot.PNG", "blue.png", "green.png", "lines.txt:1", "lines.txt:3"]

    embedder = ColourEmbedder()
    searcher = Searcher(embedder, entries, Wording(("Find: ",), "Represent", "\n"))

    def hits(text, kind, k=2, image=None):
        query = searcher.query(text, image, "Find: ")
        return [entry.name for entry, _ in searcher.search(query, k, kind)]

    assert sorted(hits("blue", "all")) == ["blue.png", "lines.txt:3"]
    assert hits("blue", "pictures", 1) == ["blue.png"]
    assert hits("", "texts", 9, Image.new("RGB", (3, 3), "red")) == ["lines.txt:1", "lines.txt:3"]
    assert ("Represent", "\n") in embedder.prompts and ("Find: ", "\n") in embedder.prompts
    with pytest.raises(ValueError, match="write something"):
        searcher.query("  ", None, "")
    assert [entry.name for entry, _ in searcher.neighbours("blue.png", 1)] == ["lines.txt:3"]

    # Where the red dot is covered, the picture has less in common with "red".
    picture, falls = searcher.map_of("below/dot.PNG", searcher.query("red", None, ""))
    assert picture.size == (80, 40) and falls.shape == (5, 10)
    assert np.unravel_index(falls.argmax(), falls.shape) in {(1, 7), (1, 8), (2, 7), (2, 8)}
    assert np.abs(falls[:, :5]).max() < 0.1 * falls.max()
    assert demo_search.overlay(picture, falls).size == (480, 240)
    assert demo_search.overlay(picture, 0 * falls).size == (480, 240)
    with pytest.raises(ValueError, match="is a text"):
        searcher.map_of("lines.txt:1", np.ones(3, np.float32))
    for entry in (*entries, Entry("long", None, "word " * 99)):
        assert demo_search.card(entry).size == (320, 320)
    captions = [caption for _, caption in demo_search.captioned([(entries[0], 0.5)])]
    assert captions == ["0.500  below/dot.PNG"]

    # A model is opened once, when it is asked for.
    made: list[str] = []
    searchers = Searchers(["a", "b"], lambda name: (made.append(name), searcher)[1])
    assert searchers["b"] is searchers["b"] and made == ["b"]

    # The folder that nothing is downloaded for, drawn once.
    folder = demo_search.draw_mini(tmp_path / "mini", pictures=10, texts=5)
    drawn = demo_search.entries_of(folder)
    assert sum(entry.picture is not None for entry in drawn) == 10 and len(drawn) == 15
    (folder / "captions.txt").write_text("mine\n")
    assert len(demo_search.entries_of(demo_search.draw_mini(folder))) == 11
    assert MINI.instructions[0] == "Find an image of this scene: "

    # Without gradio the command says what to install.
    code = (
        "import sys; sys.modules['gradio'] = None; sys.argv[1:] = ['--model=x'];"
        "import runpy; runpy.run_path('experiments/demo.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'unime_jax[demo]'" in done.stderr
