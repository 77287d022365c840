"""Saving of an opened model, as a folder or a repository of the hub: nothing of it is trained here.

Weights are copied tensor by tensor from the folder that was opened, in their own precision, so that
a model that runs in bfloat16 or int8 is not saved rounded.
"""

import json
import os
import pathlib
import re
import shutil
import tempfile

import jax
import numpy as np
from huggingface_hub import HfApi

from unime_jax import files
from unime_jax.backbones import Backbone
from unime_jax.backbones.io import st_folder
from unime_jax.backbones.io.folder_tensors import Checkpoint
from unime_jax.backbones.io.weights import SHARD_BYTES
from unime_jax.backbones.preprocessing.processing import read_record
from unime_jax.data.strange_texts import markdown, markdown_code
from unime_jax.export import folder as hf_folder
from unime_jax.export import merged_weights
from unime_jax.export.sentence_transformers import PROMPTS
from unime_jax.inference.opened_model import OpenedModel

CARD = "README.md"
CHECK = "self_check*"  # with its images: true of a copy, too
_HUB_ID = re.compile(r"[A-Za-z][\w.-]*/[\w.-]+", re.ASCII)
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def save(opened: OpenedModel, folder: str | os.PathLike[str]) -> None:
    """Writes <folder>, which appears when it is complete; see `Embedder.save_pretrained`.

    The card and self-check of an export go along where they are true of the copy: where items are
    made as its record says.

    Raises:
      ValueError: the folder exists, or has no place for the prompts.
    """
    target = files.as_path(os.fspath(folder))
    if target.exists():
        raise ValueError(f"{target} exists; delete it, or save to another folder")
    if jax.process_index() != 0:
        return
    backbone = opened.backbone
    checkpoint = merged_weights.open_weights(backbone)
    dtype = merged_weights.dtype_of(backbone, [checkpoint])
    with files.replacing(target, last="config.json") as partial:
        try:
            hf_folder.write_beside_weights(partial, backbone, dtype, opened.prompts)
            _write_defaults(partial, opened)
            _write_weights(partial, backbone, checkpoint, opened.model_dtype)
            if not _copy_card(partial, backbone, opened.max_length):
                (partial / CARD).write_text(_card(partial, target.name, backbone))
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def push(
    opened: OpenedModel,
    repo_id: str,
    *,
    token: str | None,
    private: bool | None,
    revision: str | None,
    commit_message: str,
) -> str:
    """Uploads what `save` writes, by process 0; arguments are those of `Embedder.push_to_hub`.

    Weights that were in the repository before are deleted with the same commit, so that none of
    another model stay beside these. Everything else stays.

    Raises:
      ValueError: as `save`, or the hub refuses.
    """
    if jax.process_index() != 0:
        return ""
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory(prefix="unime_jax-") as scratch:
        folder = pathlib.Path(scratch, repo_id.rpartition("/")[2] or "model")
        save(opened, folder)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
                delete_patterns=list(WEIGHTS),
            )
        except Exception as error:  # of HTTP, of the hub, or of a name that is none
            raise ValueError(
                f"{repo_id!r} cannot be uploaded to the Hugging Face hub: {error}"
            ) from error
    return str(commit.commit_url)


def _write_weights(
    folder: pathlib.Path, backbone: Backbone, checkpoint: Checkpoint, opened_as: np.dtype
) -> None:
    """All tensors of the checkpoint, one after the other, under the names that exports have."""
    layout: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    for name, tensor in checkpoint.tensors.items():
        dtype = tensor.dtype
        if checkpoint.is_merged(name) and dtype != opened_as:
            dtype = np.dtype(np.float32)  # rounded once when it is opened, as it was here
        layout[name] = dtype, tensor.shape
    merged_weights.write_tensors(
        folder,
        layout,
        lambda name: checkpoint.whole(name, layout[name][0]),
        (lambda name: [name]) if backbone.convert else checkpoint.spelled,
        SHARD_BYTES,
    )


def _write_defaults(partial: pathlib.Path, opened: OpenedModel) -> None:
    """Prompts, dimension and length of the opened model, where sentence-transformers has them."""
    wanted = {
        "prompts": dict(opened.prompts),
        "default_prompt_name": opened.default_prompt_name,
        "truncate_dim": opened.truncate_dim,
    }
    if not st_folder.is_one(partial):
        if any(wanted.values()):
            raise ValueError(
                "this model has no files of sentence-transformers, where prompts and truncate_dim"
                " would be saved: empty `prompts`, and set `truncate_dim` to None"
            )
        return
    file = partial / PROMPTS
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | wanted, indent=2) + "\n")
    asked = st_folder.max_seq_length(partial)
    if asked != opened.max_length:
        _write_length(partial, opened.max_length)


def _write_length(partial: pathlib.Path, tokens: int) -> None:
    """Writes the most tokens of a row, in all places of the first module's file that have it."""
    names = [name for name in st_folder.SETTINGS if (partial / name).exists()]
    file = partial / (names or st_folder.SETTINGS)[0]
    settings = json.loads(file.read_text()) if names else {}
    text = settings.get("processing_kwargs", {}).get("text", {})
    places = [(text, "max_length")]
    for key in ("processor_kwargs", "tokenizer_args"):
        places.append((settings.get(key, {}), "model_max_length"))
    for group, name in places:
        if name in group:
            group[name] = tokens
    file.write_text(json.dumps(settings | {"max_seq_length": tokens}, indent=2) + "\n")


def _copy_card(partial: pathlib.Path, backbone: Backbone, max_length: int) -> bool:
    """Copies card and self-check, if they are true of the copy; whether there is a card now."""
    source = backbone.folder
    if backbone.adapter or not (source / CARD).exists():  # an adapter's is not of the merged model
        return False
    record = read_record(source)
    if record and (record.processing, record.max_length) != (backbone.processing, max_length):
        return False
    for file in (source / CARD, *source.glob(CHECK)):
        shutil.copyfile(file, partial / file.name)
    return True


def _card(partial: pathlib.Path, name: str, backbone: Backbone) -> str:
    """README.md of a model about which nothing is known but where it came from."""
    base = str(backbone.adapter or backbone.base)
    from_hub = _HUB_ID.fullmatch(base) and base in backbone.commits
    base = base if from_hub else pathlib.Path(base).name  # where it lay is nobody's business
    is_st = st_folder.is_one(partial)
    commits = [f"{key} at commit {value}" for key, value in backbone.commits.items()]
    of_hub = f" (on the Hugging Face hub: {', '.join(commits)})" if commits else ""
    lines = [
        "---",
        f"library_name: {'sentence-transformers' if is_st else 'transformers'}",
        "pipeline_tag: feature-extraction",
        *(["base_model: " + base] if from_hub else []),
        "tags:",
        "- unime_jax",
        "---",
        "",
        f"# {markdown(name)}",
        "",
        f"Embeddings of length 1 with {backbone.dimension} numbers. The model was saved from"
        f" {markdown_code(base)}{of_hub} by unime_jax, without further training. Its licence holds"
        " for it, too.",
        "",
        "    from unime_jax import Embedder",
        f'    Embedder.from_pretrained("{name}").encode(["a text"])',
        "",
    ]
    if is_st:
        lines += [
            "With sentence-transformers, 6.2 or newer:",
            "",
            "    from sentence_transformers import SentenceTransformer",
            f'    SentenceTransformer("{name}").encode(["a text"])',
            "",
        ]
    if backbone.caveats:
        lines += ["What other libraries do differently:", ""]
        lines += [*(f"- {sentence}" for sentence in backbone.caveats), ""]
    return "\n".join(lines)
