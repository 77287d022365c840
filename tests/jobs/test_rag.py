"""The program of docs/rag.md, as it is printed, on the export of a run."""

import json
import pathlib
import re
import sys

import numpy as np
from PIL import Image

from unime_jax import Embedder

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "rag.md"
NOTES = "# Shapes\n\na red circle\nleft of all\n\nfirst ![](red.png) then ![a](more/blue.png)\n"


def program() -> str:
    (block,) = re.findall(r"(?:^    .*\n|^\n)+(?=^`python rag)", PAGE.read_text(), re.MULTILINE)
    return re.sub("^    ", "", block, flags=re.MULTILINE)


def test_the_program_of_the_page_answers_with_places(straight, tmp_path, monkeypatch, capsys):
    code = program().strip()
    assert len([line for line in code.splitlines() if line]) <= 40
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "stage2").symlink_to(straight)
    (folder := tmp_path / "notes" / "more").mkdir(parents=True)
    (tmp_path / "notes" / "shapes.md").write_text(NOTES)
    for name, color in (("red", (255, 0, 0)), ("more/blue", (0, 0, 255)), ("page-1", (9, 9, 9))):
        Image.new("RGB", (24, 24), color).save(tmp_path / "notes" / f"{name}.png")
    (tmp_path / "notes" / "page-1.txt").write_text("text of the page")

    def answered(question):
        monkeypatch.setattr(sys, "argv", ["rag.py", "notes", question])
        exec(compile(code, "rag.py", "exec"), {"__name__": "__main__"})
        return re.findall(r"\[(\d)\] (\S+)  score (\S+)", capsys.readouterr().out)

    encoded = []
    encode = Embedder.encode
    monkeypatch.setattr(
        Embedder,
        "encode",
        lambda model, items, **options: (
            encoded.append(list(items)) or encode(model, items, **options)
        ),
    )
    (first, second, third) = answered("a red circle\nleft of all")
    assert first[:2] == ("1", "shapes.md:3") and float(first[2]) > 0.999
    assert float(first[2]) >= float(second[2]) >= float(third[2])
    items, _ = encoded
    places = json.loads((tmp_path / "index.json").read_text())[0]
    assert places == [
        "more/blue.png",
        "page-1.png",
        "red.png",
        "shapes.md:1",
        "shapes.md:3",
        "shapes.md:6",
    ]
    assert items[1]["text"] == "text of the page"
    assert items[5] == {
        "text": "first <|image_1|> then <|image_2|>",
        "image": ["notes/red.png", "notes/more/blue.png"],
    }
    # The index serves a second question; of this the passage with its images is the prompt.
    ((_, place, score), *_) = answered("first then")
    assert encoded[2:] == [["first then"]]
    (message,) = json.loads((tmp_path / "prompt.json").read_text())
    texts = [part["text"] for part in message["content"] if part["type"] == "text"]
    assert texts[1].startswith(f"[1] {place}") and texts[-1] == "first then"
    files = [part["path"] for part in message["content"] if part["type"] == "image"]
    assert files and all(pathlib.Path(file).is_file() for file in files)

    Image.new("RGB", (24, 24), (0, 255, 0)).save(folder / "blue.png")
    before = np.load("index/vectors.npy")
    answered("first then")
    assert (np.load("index/vectors.npy") != before).any(axis=1).tolist() == [
        True,
        False,
        False,
        False,
        False,
        True,
    ]
