import dataclasses
import io
import json
import zipfile
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from data_pipelines.benchmarks import check, cola, prepare, sugarcrepe, winoground
from data_pipelines.benchmarks.catalogue import load
from data_pipelines.benchmarks.hub import HuggingFaceHub
from tests.tables import for_each
from unime_jax.data.images import decode
from unime_jax.evaluation import score_table, tasks
from unime_jax.evaluation.benchmarks import composition_rules
from unime_jax.evaluation.benchmarks.prepared_set import TaskSettings, images_of
from unime_jax.evaluation.benchmarks.sets import open_benchmarks
from unime_jax.evaluation.stored import results
from unime_jax.evaluation.tasks import composition

SETTINGS = TaskSettings("<|image_1|>", "{caption}", "", 0)
WORDS = {"red": (1, 0, 0), "reddish": (0.9, 0.1, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
RED, GREEN = (255, 0, 0), (0, 255, 0)
RIGHT, WRONG, TIE = ("red", "green"), ("green", "red"), ("red", "red")  # of a red image
VAL = "val2017/000000222235.jpg"


def png(*colours: tuple[int, int, int]) -> bytes:
    """An image of a pixel for each colour, from left to right."""
    image = Image.new("RGB", (len(colours), 1))
    image.putdata(colours)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write(raw, path, content):
    (raw / path).parent.mkdir(parents=True, exist_ok=True)
    is_bytes = isinstance(content, bytes)
    (raw / path).write_bytes(content if is_bytes else json.dumps(content).encode())


def parquet(raw, rows, name="test-00000-of-00001"):
    (raw / "data").mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), raw / "data" / f"{name}.parquet", row_group_size=2
    )


def cell(*colours):
    return {"bytes": png(*colours), "path": "1.png"}


def make_sugarcrepe(raw):
    captions = {
        "replace_obj": [RIGHT, RIGHT],
        "replace_att": [WRONG],
        "replace_rel": [TIE],
        "swap_att": [RIGHT],
        "swap_obj": [WRONG, TIE],
        "add_att": [RIGHT],
        "add_obj": [RIGHT],
    }
    for subset, pairs in captions.items():
        rows = {
            str(index): {"filename": VAL[8:], "caption": first, "negative_caption": second}
            for index, (first, second) in enumerate(pairs)
        }
        write(raw, f"data/{subset}.json", rows)
    write(raw, VAL, png(RED))


def make_sugarcrepe_mteb(raw):
    pairs = (RIGHT, WRONG, TIE)
    rows = [{"images": cell(RED), "caption": a, "negative_caption": b} for a, b in pairs]
    parquet(raw, rows, "train-00000-of-00001")


def make_sugarcrepe_pp(raw):
    captions = {
        "replace_att": [("red", "reddish", "green"), ("red", "green", "reddish")],
        "replace_obj": [("red", "reddish", "green")],
        "replace_rel": [("green", "blue", "red")],
        "swap_att": [("green", "green", "red")],  # together, and both below the wrong one
        "swap_obj": [("red", "red", "red")],
    }
    for subset, triples in captions.items():
        rows = [
            {"id": n, "filename": VAL[8:], "caption": a, "caption2": b, "negative_caption": c}
            for n, (a, b, c) in enumerate(triples)
        ]
        write(raw, f"data/{subset}.json", rows)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(VAL, png(RED))
    write(raw, "val2017.zip", buffer.getvalue())


# Of a red and a green image; the last are ties.
QUADS = (("red", "green"), ("red", "reddish"), ("blue", "blue"))


def make_winoground(raw):
    lines = [
        json.dumps(
            {
                "id": n,
                "image_0": f"ex_{n}_img_0",
                "image_1": f"ex_{n}_img_1",
                "caption_0": a,
                "caption_1": b,
                "tag": "Noun",
            }
        )
        for n, (a, b) in enumerate(QUADS)
    ]
    write(raw, "data/examples.jsonl", "\n".join([*lines, ""]).encode())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for n in range(len(QUADS)):
            archive.writestr(f"images/ex_{n}_img_0.png", png(RED))
            archive.writestr(f"images/ex_{n}_img_1.png", png(GREEN))
    write(raw, "data/images.zip", buffer.getvalue())


def make_winoground_parquet(raw):
    images = {"image_0": cell(RED), "image_1": cell(GREEN)}
    parquet(raw, [images | {"caption_0": a, "caption_1": b} for a, b in QUADS])


def make_cola(raw):
    place = "https://cs-people.bu.edu/array/data/vg_gqa_images"
    rows = [[f"{place}/1.jpg", a, f"{place}/2.jpg", b] for a, b in QUADS]
    write(raw, f"data/{cola.FILE}", rows)
    write(raw, "images/1.jpg", png(RED))
    write(raw, "images/2.jpg", png(GREEN))


def make_cola_clevr(raw):
    """Scores of "red": 1, 0.99 and 0; of "green": 0, 0.11 and 1; nothing is blue."""
    marks = [([1, 0, 0], [1, 0, 1]), ([0, 0, 0], [1, 1, 0]), ([1, 1, 0], [1, 1, 1])]
    data = [[f"CLEVR/val/{n}.png", {"o": []}, *both] for n, both in enumerate(marks)]
    write(
        raw,
        "data/COLA_singleobjects_benchmark_CLEVR.json",
        {"labels": ["red", "green", "blue"], "data": data},
    )
    for n, colour in enumerate((RED, (230, 26, 0), GREEN)):
        write(raw, f"images/val/{n}.png", png(colour))


RELATIONS = {"above": [RIGHT, WRONG], "below": [RIGHT], "near": [WRONG]}  # the last: symmetric


def of_relations(pairs):
    return [
        {"true_caption": a, "false_caption": b, "relation_name": relation}
        for relation, captions in pairs.items()
        for a, b in captions
    ]


def make_aro_relation(raw):
    parquet(raw, [row | {"image": cell(RED, GREEN, RED)} for row in of_relations(RELATIONS)])


def make_aro_crops(raw):
    box = {"x": 1.0, "y": 0.0, "w": 1.0, "h": 1.0}
    rows = of_relations(RELATIONS)
    parquet(raw, [row | {"image": cell(GREEN, RED), "bbox": box} for row in rows])


def make_aro_json(raw):
    box = {"bbox_x": 1, "bbox_y": 0, "bbox_w": 1, "bbox_h": 1}
    rows = [row | box | {"image_path": "7.jpg"} for row in of_relations(RELATIONS)]
    write(raw, "visual_genome_relation.json", rows)
    write(raw, "images/7.jpg", png(GREEN, RED))


def make_aro_attribution(raw):
    captions = [(["big", "old"], RIGHT)] * 20 + [(["big", "old"], TIE)] * 5
    captions += [(["new", "wet"], WRONG)] * 24
    rows = [
        {"image": cell(RED), "true_caption": a, "false_caption": b, "attributes": attributes}
        for attributes, (a, b) in captions
    ]
    parquet(raw, rows)


def make_aro_order(raw):
    rows = [("red", "green", "blue", "reddish", "green"), ("red", "red", "green", "green", "blue")]
    rows.append(("reddish", "red", "green", "green", "blue"))
    names = ("correct_caption", "hard_text_1", "hard_text_2", "hard_text_3", "hard_text_4")
    parquet(raw, [{"images": cell(RED)} | dict(zip(names, row, strict=True)) for row in rows])


def encode(items):
    """A caption is the vector of its word, an image the mean of its pixels."""
    pixels = [np.asarray(decode(item.media[0].data)) if item.media else None for item in items]
    return np.array(
        [
            WORDS[item.text] if pixel is None else pixel.reshape(-1, 3).mean(axis=0)
            for item, pixel in zip(items, pixels, strict=True)
        ],
        np.float32,
    )


def public(name, counts: dict[str, int] | None = None):
    """A set of the catalogue, of which a fixture has not as many rows."""
    return dataclasses.replace(load().sets[name], counts=counts or {})


SUGARCREPE = {
    "add_att": 100, "add_obj": 100, "replace_att": 0, "replace_obj": 100, "replace_rel": 0,
    "swap_att": 100, "swap_obj": 0,
    "add_macro": 100, "add_pooled": 100, "replace_macro": 100 / 3, "replace_pooled": 50,
    "swap_macro": 50, "swap_pooled": 100 / 3, "text_acc": 700 / 9,
}  # fmt: skip
SUGARCREPE_PP = {
    "replace_att/itt": 50, "replace_att/tot": 50, "replace_obj/itt": 100, "replace_obj/tot": 100,
    "replace_rel/itt": 0, "replace_rel/tot": 0, "swap_att/itt": 0, "swap_att/tot": 100,
    "swap_obj/itt": 0, "swap_obj/tot": 0,
    "itt_macro": 30, "itt_pooled": 100 / 3, "tot_macro": 50, "tot_pooled": 50,
}  # fmt: skip
WINOGROUND = {"text": 200 / 3, "image": 100 / 3, "group": 100 / 3}
COLA = {"text_to_image": 100 / 3, "image_to_text": 200 / 3, "group": 100 / 3}


@for_each(
    ("name", "make", "expected"),
    [
        ("sugarcrepe", make_sugarcrepe, SUGARCREPE),
        ("sugarcrepe_mteb", make_sugarcrepe_mteb, {"text_acc": 200 / 3}),
        ("sugarcrepe_pp", make_sugarcrepe_pp, SUGARCREPE_PP),
        ("winoground", make_winoground, WINOGROUND),
        ("winoground", make_winoground_parquet, WINOGROUND),
        ("cola", make_cola, COLA),
        ("cola_clevr", make_cola_clevr, {"map": 100 * (5 / 6 + 1) / 2}),
        ("aro_relation", make_aro_relation, {"text_acc": 50, "macro": 75}),
        ("aro_relation_crops", make_aro_crops, {"text_acc": 50, "macro": 75}),
        ("aro_relation_crops", make_aro_json, {"text_acc": 50, "macro": 75}),
        ("aro_attribution", make_aro_attribution, {"text_acc": 2500 / 49, "macro": 80}),
        ("aro_coco_order", make_aro_order, {"text_acc": 200 / 3}),
        ("aro_flickr_order", make_aro_order, {"text_acc": 200 / 3}),
    ],
)
def test_raw_public_files_become_the_scores_of_each_benchmarks_rule(tmp_path, name, make, expected):
    raw, folder, path = tmp_path / "raw", tmp_path / "sets", tmp_path / "result.npz"
    make(raw)
    prepare.prepare(public(name), folder, raw, HuggingFaceHub())
    check.check(public(name), folder / name)  # images are where rows say
    opened = open_benchmarks(folder, [name], SETTINGS)
    assert not opened.not_run
    loaded: list[Any] = []
    for task in opened.tasks:
        results.save_result(path, tasks.run(task, images_of(opened.sets), encode))
        loaded.append(results.load_result(path))
    found = {key: score.percent for key, score in composition.scores_of(loaded).items()}
    assert found == pytest.approx({f"{name}/{key}": value for key, value in expected.items()})
    # Tables have the set's name before them, and few columns.
    blocks = score_table.table(None, {"composition": found}).split("\n\n")
    heads = [block.splitlines()[0].split() for block in blocks]
    assert all(head[:2] == [name, "%"] for head in heads)
    assert [column for head in heads for column in head[2:]] == list(expected)
    assert max(len(line) for block in blocks for line in block.splitlines()) < 140


def remove_image(raw):
    (raw / VAL).unlink()


def remove_file(raw):
    (raw / "data" / "swap_att.json").unlink()


def empty_caption(raw):
    row = {"filename": VAL[8:], "caption": "", "negative_caption": "red"}
    write(raw, "data/swap_obj.json", {"4": row})


@for_each(
    ("spoil", "message"),
    [
        (remove_image, r"add_att.json, row 0: there is no image .*000000222235.jpg"),
        (remove_file, r"SugarCrepe is missing: there is no .*data/swap_att.json"),
        (empty_caption, r"swap_obj.json, row 4 has no text for caption"),
        (lambda raw: write(raw, "data/add_obj.json", b"{"), "add_obj.json is not JSON"),
        (lambda raw: None, "add_att has 1 in place of 692"),
    ],
)
def test_what_is_wrong_with_raw_files_is_said_and_no_set_is_left(tmp_path, spoil, message):
    make_sugarcrepe(tmp_path / "raw")
    spoil(tmp_path / "raw")
    whole = public("sugarcrepe", dict(sugarcrepe.COUNTS))
    with pytest.raises(ValueError, match=message):
        prepare.prepare(whole, tmp_path / "sets", tmp_path / "raw", HuggingFaceHub())
    assert not (tmp_path / "sets" / "sugarcrepe" / "set.json").exists()


def test_average_precision_is_scikit_learns():
    random = np.random.default_rng(0)
    for size in (1, 2, 50):
        values = random.integers(0, 8, size).astype(np.float32)  # with ties
        right = random.random(size) < 0.4
        right[0] = True
        found = composition_rules.average_precision(values, right)
        assert found == pytest.approx(average_precision_score(right, values), abs=1e-12)


def test_images_are_stored_as_they_came_and_each_once(tmp_path):
    make_winoground_parquet(tmp_path)
    winoground.read(tmp_path, tmp_path / "set")
    stored = [path.read_bytes() for path in (tmp_path / "set" / "images").iterdir()]
    assert sorted(stored) == sorted([png(RED), png(GREEN)])
