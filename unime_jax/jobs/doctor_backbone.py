"""What is wrong with a backbone's folder: weights, tokenizer, pooled token, images, remote code."""

import hashlib
import io
import json
import pathlib
import shutil
from typing import Any

import huggingface_hub
import jax
from PIL import Image

from unime_jax import paths
from unime_jax.backbones import Backbone, Processing
from unime_jax.backbones.io import tensor_files
from unime_jax.backbones.io.fingerprint import FILES, hashes
from unime_jax.backbones.io.names import table
from unime_jax.backbones.preprocessing.processing import read_record
from unime_jax.batch import Item, Media
from unime_jax.jobs.doctor_report import Report

PROBE = "a probe of how texts are made rows."
PROBE_PIXELS = 64
BYTES = 2  # of a weight, as most are published
NEEDED = ("config.json", "tokenizer.json")


def check(
    report: Report,
    facts: dict[str, Any],
    backbone: Backbone,
    *,
    weights: bool,
    images: bool,
    processing: Processing | None,
    key: str = "config.backbone",
) -> None:
    """All that can be seen of an opened backbone without reading its weights.

    Args:
      weights: whether the run reads them.
      images: whether the run embeds images.
      processing: as the config has it; None: as the folder says.
      key: the config key that names the backbone.
    """
    shapes = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))[1]
    count = sum(leaf.size for leaf in shapes.values())
    facts["backbone"] = backbone.base or str(backbone.folder)
    facts["parameters"] = f"{count:,}"
    facts["dimension"] = backbone.dimension
    facts["longest row"] = f"{backbone.preprocess.prompt.max_length} tokens"
    facts["fingerprint"] = _fingerprint(backbone)
    if not pathlib.Path(backbone.base).is_dir():
        facts["hub token"] = "there is one" if huggingface_hub.get_token() else "none"
    if backbone.commits:
        facts["commits"] = ", ".join(f"{k} {commit[:12]}" for k, commit in backbone.commits.items())
    if side := _tokenizer(backbone).get("padding_side"):
        facts["padding side"] = f"{side}, by tokenizer_config.json; rows are masked here"
    _check_remote_code(report, backbone)
    _check_record(report, backbone, processing, key)
    _check_rows(report, backbone, images=images, key=key)
    if weights:
        _check_weights(report, backbone, {path: x.shape for path, x in shapes.items()}, count, key)


def _fingerprint(backbone: Backbone) -> str:
    """A hash of the small files: configurations, tokenizer, templates. Weights are not read."""
    folder = backbone.folder
    small = {
        file.relative_to(folder).as_posix(): file
        for pattern in FILES
        if not pattern.endswith(".safetensors")
        for file in folder.glob(pattern)
    }
    listed = "\n".join(f"{name} {value}" for name, value in hashes(small).items())
    return f"{hashlib.blake2b(listed.encode(), digest_size=8).hexdigest()} without its weights"


def _tokenizer(backbone: Backbone) -> dict[str, Any]:
    file = backbone.folder / "tokenizer_config.json"
    values = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return values if isinstance(values, dict) else {}


def _check_remote_code(report: Report, backbone: Backbone) -> None:
    settings = json.loads((backbone.folder / "config.json").read_text("utf-8"))
    code = sorted({*settings.get("auto_map", {}).values()})
    if code:
        report.add(
            "note",
            "backbone.remote_code",
            f"config.json names code of the repository ({', '.join(map(str, code[:4]))}), which is "
            "never run: the model is this package's own",
            where=str(backbone.folder / "config.json"),
        )


def _check_record(
    report: Report, backbone: Backbone, processing: Processing | None, key: str
) -> None:
    """Inputs that are made otherwise than those that an exported model was trained on."""
    record = read_record(backbone.adapter or backbone.folder)
    if record is None or processing is None or record.processing == processing:
        return
    own, asked = vars(record.processing), vars(processing)
    changed = [f"{k} {own[k]!r} -> {asked[k]!r}" for k in own if own[k] != asked[k]]
    report.add(
        "warning",
        "backbone.processing",
        f"{backbone.base or backbone.folder} was trained on inputs that were made otherwise: "
        f"{', '.join(changed)}",
        where="config.processing",
        do="Set config.processing=None, which takes what the folder has recorded, unless the "
        f"model of {key} is meant to learn other inputs.",
    )


def _check_rows(report: Report, backbone: Backbone, *, images: bool, key: str) -> None:
    """Rows of a short text, one that is cut, and a picture."""
    where = str(backbone.folder / "tokenizer.json")
    limit = backbone.preprocess.prompt.max_length
    longer = "Give rows more tokens (config.data.buckets, config.max_length)"
    try:
        short = backbone.preprocess(Item(PROBE))
        cut = backbone.preprocess(Item(f"{'word ' * 2 * limit}{PROBE}"))
    except ValueError as error:
        said = f"an ordinary text cannot be made a row: {error}"
        report.add("error", "backbone.rows", said, where=key, do=f"{longer}.")
        return
    differs = len(short.tokens) and short.tokens[-1] != cut.tokens[-1]
    if differs and not backbone.layout.separate:
        report.add(
            "warning",
            "backbone.pooled_token",
            f"a text that is cut to {limit} tokens ends with another token ({cut.tokens[-1]}) "
            f"than a short one ({short.tokens[-1]}), and embeddings are pooled there",
            where=where,
            do="Give rows more tokens, or see what the tokenizer adds at the end (its "
            "post_processor), so that all texts end alike.",
        )
    if not images or not backbone.layout.patches:
        return
    picture = io.BytesIO()
    Image.new("RGB", (PROBE_PIXELS, PROBE_PIXELS), "red").save(picture, "png")
    media = Media("probe.png", picture.getvalue())
    try:
        row = backbone.preprocess(Item("<|image_1|>\nA picture.", (media,)))
    except ValueError as error:
        said = f"a small picture cannot be made a row: {error}"
        do = f"{longer}, or make images smaller (config.processing)."
        report.add("warning", "backbone.rows", said, where=key, do=do)
        return
    placed = backbone.layout.separate or bool((row.slot >= 0).any())
    if row.patches is None or not len(row.patches) or not placed:
        report.add(
            "error",
            "backbone.image_marker",
            "the image of an item has no place among its tokens: no model would see it",
            where=where,
            do="Take tokenizer and config.json of one checkpoint, whose image token is the same "
            "(image_token_id).",
        )


def _check_weights(
    report: Report,
    backbone: Backbone,
    shapes: dict[str, tuple[int, ...]],
    count: int,
    key: str,
) -> None:
    if not tensor_files.checkpoint_files(backbone.folder):
        if pathlib.Path(backbone.base).is_dir():
            return  # which the run's own checks say
        _check_download(report, backbone, count, key)
        return
    try:
        backbone.checkpoint().check(table(shapes, backbone.names))
    except (ValueError, OSError) as error:
        report.add(
            "error",
            "backbone.weights",
            str(error),
            where=str(backbone.folder),
            do="Download the repository again, weights and config.json from one commit.",
        )


def _check_download(report: Report, backbone: Backbone, count: int, key: str) -> None:
    """Room for weights that are still on the hub."""
    report.skip(
        "backbone.weights",
        f"the weights of {backbone.base} are on the hub, and are not asked for before the run",
    )
    free = shutil.disk_usage(backbone.folder).free
    if free < BYTES * count:
        report.add(
            "warning",
            "backbone.download",
            f"the weights of {backbone.base}, {count / 1e9:.1f}e9 parameters, take about "
            f"{BYTES * count / 1e9:.0f} GB, and {backbone.folder} has {free / 1e9:.1f} GB left",
            where=key,
            do="Make room, or name another folder for downloads by HF_HOME.",
        )
