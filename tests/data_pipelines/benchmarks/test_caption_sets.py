"""Caption sets from raw files in the public layouts to scores."""

import dataclasses
import io
import json
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from data_pipelines.benchmarks import karpathy, long_captions, prepare
from tests.tables import for_each
from unime_jax import files
from unime_jax.evaluation import suite

SETS = {public.name: public for public in (*karpathy.SETS, *long_captions.SETS)}
TEXTS = [[f"caption {n} of image {row}" for n in range(7)] for row in range(3)]


def picture(row):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (80 * row, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def zipped(path, members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    put(path, buffer.getvalue())


def karpathy_json(raw, file, folder, filepath):
    entries = []
    for row, texts in enumerate(TEXTS):
        entry = {"filename": f"{row}.jpg", "imgid": row, "split": "test", "sentids": [row]}
        entry |= {"filepath": filepath} if filepath else {}
        sentences = [{"raw": text, "tokens": text.split(), "imgid": row} for text in texts]
        entries.append(entry | {"sentences": sentences})
        put(raw / folder / f"{row}.jpg", picture(row))
    train = entries[0] | {"filename": "train.jpg", "split": "restval"}
    put(raw / file, json.dumps({"images": [train, *entries], "dataset": "tiny"}))


def flickr_json(raw):
    karpathy_json(raw, "dataset_flickr30k.json", "flickr30k-images", "")


def coco_json(raw):
    karpathy_json(raw, "dataset_coco.json", "val2014", "val2014")


def hub_parquet(raw):
    """As royokong's, in two shards."""
    rows = [
        {"image": {"bytes": picture(row), "path": f"{row}.jpg"}, "text": texts}
        for row, texts in enumerate(TEXTS)
    ]
    (raw / "data").mkdir(parents=True)
    for number, part in enumerate((rows[:2], rows[2:])):
        path = raw / "data" / f"test-{number:05d}-of-00002.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), path)


def hub_csv(raw):
    """As nlphuji's, lists as JSON and as Python writes them."""
    cells = [json.dumps(TEXTS[0]), str(TEXTS[1]), json.dumps(TEXTS[2])]
    quoted = [cell.replace('"', '""') for cell in cells]
    lines = [f'"{cell}","[{row}]",test,{row}.jpg,{row}' for row, cell in enumerate(quoted)]
    put(raw / "test_1k_flickr.csv", "\n".join(["raw,sentids,split,filename,img_id", *lines]) + "\n")
    members = {f"images_flickr_1k_test/{row}.jpg": picture(row) for row in range(3)}
    zipped(raw / "images_flickr_1k_test.zip", members)


def sharegpt4v(raw):
    rows = []
    for row, texts in enumerate(TEXTS):
        turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "\n".join(texts)}]
        rows.append({"id": str(row), "image": f"sam/images/sa_{row}.jpg", "conversations": turns})
        put(raw / "sam" / "images" / f"sa_{row}.jpg", picture(row))
    put(raw / long_captions.SHAREGPT4V, json.dumps(rows, indent=2))


def urban1k(raw):
    members = {f"Urban1k/image/{row + 1}.jpg": picture(row) for row in range(3)}
    texts = {f"Urban1k/caption/{row + 1}.txt": f"{t[0]}\n{t[1]}\n" for row, t in enumerate(TEXTS)}
    zipped(raw / "Urban1k.zip", members | texts)


def docci(raw):
    lines = []
    for row, texts in enumerate(TEXTS):
        named = {"example_id": f"test_{row:05d}", "image_file": f"test_{row:05d}.jpg"}
        lines.append(named | {"split": "test", "description": texts[0]})
        put(raw / "images" / f"test_{row:05d}.jpg", picture(row))
    lines.append({"example_id": "qual_dev_00000", "split": "qual_dev", "image_file": "none.jpg"})
    put(raw / long_captions.DOCCI, "".join(json.dumps(line) + "\n" for line in lines))


LAYOUTS = [
    ("flickr30k", flickr_json, 5),
    ("flickr30k", hub_parquet, 5),
    ("flickr30k", hub_csv, 5),
    ("coco_karpathy", coco_json, 5),
    ("coco_karpathy", hub_parquet, 5),
    ("sharegpt4v_1k", sharegpt4v, 1),
    ("urban1k", urban1k, 1),
    ("docci", docci, 1),
]


def prepared(name, make, tmp_path):
    make(tmp_path / "raw")
    public = dataclasses.replace(SETS[name], counts={name: 3})  # of the fixture
    prepare.prepare(public, tmp_path / "sets", tmp_path / "raw", None)


def make_suite(folder, **more):
    return suite.make_suite(
        folder,
        mmeb_folder="",
        composition_folder="",
        images="",
        image_prompt="<|image_1|> in one word:",
        limit=0,
        agreement=None,
        retrieval_data="",
        columns={},
        caption_prompt="{caption} in one word:",
        video_prompt="<|video_1|>",
        benchmark_folder="sets",
        **{"benchmark_names": ()} | more,
    )


def encode(items):
    """One direction an image, which its captions share, but for the last caption of image 1."""
    vectors = []
    for item in items:
        if item.media:
            red = np.asarray(Image.open(io.BytesIO(item.media[0].data)))[0, 0, 0]
            row = round(float(red) / 80)
        else:
            row = int(item.text.removesuffix(" in one word:")[-1])
            row = 2 if "caption 4 of image 1" in item.text and "caption 0" not in item.text else row
        vectors.append(np.eye(3, dtype=np.float32)[row])
    return np.array(vectors)


@for_each(("name", "make", "each"), LAYOUTS)
def test_every_layout_goes_from_raw_files_to_scores(name, make, each, tmp_path, monkeypatch):
    monkeypatch.setattr(long_captions, "BUFFER", 7)  # rows lie in many reads
    prepared(name, make, tmp_path)
    scores, _ = suite.evaluate(make_suite(tmp_path), encode)
    found = scores["captions"][name]
    assert found["images"] == 3 and found["captions"] == 3 * each
    # Captions of one image tie, so that the wrong one is behind those of image 2, which tie with it
    wrong = 1 if each == 5 else 0
    assert found["t2i"]["R@1"] == pytest.approx(100 * (3 * each - wrong) / (3 * each))
    assert found["t2i"]["R@5"] == 100 and found["i2t"]["R@10"] == 100
    assert found["i2t"]["R@1"] == pytest.approx(100 * (3 - wrong) / 3)
    (task,) = make_suite(tmp_path).tasks
    first = task.rows[0]
    assert first["captions"][0].startswith("caption 0 of image 0") and "\n" not in str(first)
    assert len(first["captions"]) == each
    assert files.read_object(tmp_path / "sets" / name / "set.json")["kind"] == "captions"


def without_image(raw):
    flickr_json(raw)
    (raw / "flickr30k-images" / "1.jpg").unlink()


def with_four_captions(raw):
    flickr_json(raw)
    content = json.loads((raw / "dataset_flickr30k.json").read_text())
    del content["images"][2]["sentences"][4:]
    put(raw / "dataset_flickr30k.json", json.dumps(content))


def cut_off(raw):
    sharegpt4v(raw)
    path = raw / long_captions.SHAREGPT4V
    put(path, path.read_text()[:-40])


def with_an_extra_image(raw):
    for row in range(2):
        put(raw / "image" / f"{row}.jpg", picture(row))
    put(raw / "caption" / "0.txt", "a caption")


def one_short(raw):
    docci(raw)
    path = raw / long_captions.DOCCI
    put(path, path.read_text().partition("\n")[2])


@for_each(
    ("name", "make", "message"),
    [
        ("flickr30k", lambda raw: raw.mkdir(), "neither dataset_flickr30k.json nor test_1k_flick"),
        ("flickr30k", without_image, "has not 1 of the 3 images of flickr30k, such as 1.jpg"),
        ("flickr30k", with_four_captions, r"flickr30k.json, image 2: 4 captions, where all imag"),
        ("sharegpt4v_1k", cut_off, "1107.json is cut off in row 2"),
        ("urban1k", with_an_extra_image, "has no 1.txt"),
        ("docci", one_short, "docci has 2 in place of 3. The raw files are not those of the publ"),
    ],
)
def test_raw_files_that_are_not_the_public_ones_are_an_error(name, make, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        if name == "urban1k":
            make(tmp_path / "raw")
            long_captions.read_urban1k(tmp_path / "raw", tmp_path / "sets" / name)
        else:
            prepared(name, make, tmp_path)
    assert not (tmp_path / "sets" / name / "set.json").exists()
