"""A run's files and rankings of random embeddings, and what is read off its report."""

import html.parser
import io
import json
import re

import numpy as np
from PIL import Image

from unime_jax.evaluation import scores, tasks
from unime_jax.evaluation.report import page as report
from unime_jax.evaluation.tasks import mmeb
from unime_jax.training import curves

TABLE = {
    "digits": ("CLS", "IND"),
    "colours": ("VQA", "OOD"),
    "scenes": ("RET", "IND"),
    "regions": ("VG", "OOD"),
}
EVIL = '<script>alert("1")</script> & <b>bold</b>'


def image_bytes(path):
    rng = np.random.default_rng(len(path) + sum(map(ord, path)))
    size = (300, 200) if "wide" in path else (40, 40)
    buffer = io.BytesIO()
    pixels = rng.integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def evaluation(signal, rows=20):
    """Random embeddings in which the gold shares `signal` with its query."""

    def encode(items):
        vectors = []
        for item in items:
            # q3 and t3 of a dataset belong together.
            own, shared = (
                np.random.default_rng([ord(c) for c in name]).normal(size=16)
                for name in ("".join(item.key), re.sub("[qt]", "", item.key[1]))
            )
            vectors.append(own + signal * shared)
        return np.array(vectors, np.float32)

    data = {}
    for name in TABLE:
        text_only = name == "digits"
        data[name] = [
            {
                "id": f"{name}-{i}",
                "qry_text": f"<|image_1|>\n{EVIL} {i}",
                "qry_img_path": f"{name}/q{i}.png",
                "tgt_text": [f"{EVIL} {(i + k) % rows}" for k in range(8)],
                "tgt_img_path": [
                    "" if text_only else f"{name}/t{(i + k) % rows}.png" for k in range(8)
                ],
            }
            for i in range(rows)
        ]
    return {
        name: tasks.run(mmeb.Task(name, rows), image_bytes, encode) for name, rows in data.items()
    }


def write_run(workdir, results, composition=True):
    for when, side in zip(("before", "after"), results, strict=True):
        percent = {name: result.hit_at_1 for name, result in side.items()}
        subsets = {"replace": 52.5, "swap": 61.25} if composition else None
        scores.write_scores(workdir, when, scores.summary(percent, TABLE, subsets))
    lines = [
        {
            "step": s,
            "loss": None if s == 7 else 5 / s,
            "gradient_norm": float("inf") if s == 7 else 1.0,
            "learning_rate": 1e-3,
            "positive_similarity": 0.5,
            "hard_negative_similarity": 0.4,
            "easy_negative_similarity": -0.1,
            "masked_share": 0.0,
            "negatives_per_query": 31,
            "pairs_per_second": 12.5,
            "skipped_steps": int(s >= 7) + int(s >= 9),
        }
        for s in range(1, 13)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / "metrics.jsonl").write_text(text + '{"step": 13, "lo')
    config = {"loss": {"temperature": 0.02, "note": EVIL}, "seed": 3, "sources": ["a", "b"]}
    (workdir / "config.json").write_text(json.dumps(config))


class Page(html.parser.HTMLParser):
    """Tags, texts and addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        names = ("src", "href", "xlink:href", "srcset", "action", "data")
        self.addresses += [value for name, value in attributes if name in names]

    def handle_data(self, data):
        self.texts.append(data)


def write(workdir, before, after, **more):
    path = report.write_report(
        workdir,
        table=TABLE,
        before=before,
        after=after,
        images=image_bytes,
        training=curves.section(workdir),
        **more,
    )
    assert path == workdir / "report.html"
    text = path.read_text()
    return text, Page(text)


def change(workdir, name, **changes):
    path = workdir / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def words_of(page):
    return " ".join(" ".join(page.texts).split())
