"""Models of this package in mteb: an encoder with its metadata, for `mteb.evaluate`.

import mteb
from unime_jax.integrations.mteb import load

model = load("runs/stage2")
mteb.evaluate(model, mteb.get_tasks(["Flickr30kT2IRetrieval"]))
"""

import hashlib
import math
import os
import pathlib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from huggingface_hub import ModelCard
from jax.sharding import Mesh
from jaxtyping import Float32
from tqdm import tqdm

from unime_jax.backbones import Backbone, Processing
from unime_jax.backbones.io.fingerprint import fingerprint
from unime_jax.data.user_inputs import UserInput
from unime_jax.embedder import Embedder

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.types import Licenses, PromptType
except ImportError as error:
    raise ImportError(
        f"unime_jax.integrations.mteb needs mteb 2.20 or newer ({error}): pip install"
        " 'unime_jax[eval]'"
    ) from error

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import BatchedInput
    from torch.utils.data import DataLoader

# Batches that are encoded in one call, which puts texts of like length together.
TEXT_BATCHES, IMAGE_BATCHES = 256, 16


class EmbedderWrapper(AbsEncoder):
    """An `Embedder` as mteb's encoder. Embeddings are float32 of length 1, compared by cosine.

    Before a text goes, in this order: the folder's prompt of the task, of its type or of the side,
    chosen as mteb does for sentence-transformers; else the task's instruction, worded as published
    embedders of the model's family do (`Backbone.instruction`); else the folder's default prompt.
    Documents have no instruction unless the task has one for them.

    Attributes:
      model: the embedder.
      use_instructions: whether tasks' instructions are used.
    """

    def __init__(
        self, embedder: Embedder, mteb_model_meta: ModelMeta, *, use_instructions: bool = True
    ):
        self.model = embedder
        self.mteb_model_meta = mteb_model_meta
        self.model_prompts = embedder.prompts
        self.use_instructions = use_instructions

    def encode(  # keywords by name, so that unknown ones are refused
        self,
        inputs: "DataLoader[BatchedInput]",
        *,
        task_metadata: "TaskMetadata",
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = True,
        precision: str = "float32",
    ) -> Float32[np.ndarray, "n D"]:
        """Embeddings of mteb's inputs, in order: texts, images, or both in an item.

        A text is mteb's column `text`, in which a document's title and body, or a query and its
        own instruction, are joined. An item without an image (None), or with an empty text, is the
        other alone.

        Args:
          prompt_type: query, document, or None where a task has no sides.
          batch_size: items of a batch: memory and speed.
          precision: "float32"; others are mteb's `CompressionWrapper`'s.

        Raises:
          ValueError: another precision, a batch without texts and images, or an item that the
            embedder refuses; the message names task, split and subset.
        """
        if precision != "float32":
            raise ValueError(
                f"precision is {precision!r}; embeddings are float32 here. Quantise them in mteb:"
                " mteb.models.CompressionWrapper(model, ...)"
            )
        instruction = self.instruction(task_metadata, prompt_type)
        bar = tqdm(inputs, desc="Encoding", disable=not show_progress_bar)
        parts = []
        start = 0
        for items in _windows(bar, batch_size):
            try:
                parts.append(self._encode(items, instruction, batch_size))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{task_metadata.name}, split {hf_split!r}, subset {hf_subset!r}, items from"
                    f" {start} on: {error}"
                ) from error
            start += len(items)
        if not parts:
            return np.zeros((0, self.model.dimension), np.float32)
        return np.concatenate(parts)

    def instruction(
        self, task_metadata: "TaskMetadata", prompt_type: PromptType | None
    ) -> str | None:
        """What goes before every text of one side of a task; None: the folder's default prompt."""
        name = self.get_prompt_name(task_metadata, prompt_type)
        if name is not None and (prompt := self.model.prompts[name]):
            return prompt
        template = self.model.backbone.instruction
        said = _instruction_of(task_metadata, prompt_type)
        if not said or not template or not self.use_instructions:
            return None
        return template.format(instruction=said)

    def _encode(
        self, items: Sequence[UserInput], instruction: str | None, batch_size: int
    ) -> Float32[np.ndarray, "n D"]:
        """An instruction without a text after it ends without white space."""
        alone = [isinstance(item, Mapping) and not item.get("text") for item in items]
        if instruction is None or not any(alone):
            return self.model.encode(items, prompt=instruction, batch_size=batch_size)
        vectors = np.empty((len(items), self.model.dimension), np.float32)
        for is_alone, prompt in ((True, instruction.rstrip()), (False, instruction)):
            numbers = [number for number, is_so in enumerate(alone) if is_so == is_alone]
            if numbers:
                part = [items[number] for number in numbers]
                vectors[numbers] = self.model.encode(part, prompt=prompt, batch_size=batch_size)
        return vectors


def load(
    folder_or_hub_id: str | os.PathLike[str],
    revision: str | None = None,
    *,
    device: str | None = None,
    name: str | None = None,
    dtype: Literal["float32", "bfloat16", "int8"] = "bfloat16",
    max_length: int | None = None,
    processing: Processing | None = None,
    truncate_dim: int | None = None,
    mesh: Mesh | None = None,
    use_instructions: bool = True,
) -> EmbedderWrapper:
    """A model folder, a hub id, or a training run's work directory as mteb's encoder.

    `dtype`, `max_length`, `processing`, `truncate_dim` and `mesh` are as of
    `Embedder.from_pretrained`. What differs from the folder's own, and a dtype other than bfloat16,
    is in the metadata's `experiment_kwargs`, by which mteb keeps results apart.

    Args:
      revision: of a hub id: branch, tag or commit.
      device: None; mteb hands it on, and JAX's devices are those of `mesh`.
      name: "organization/model", for mteb's results; None: the hub id, or "local/" and the name of
        the folder (of a run's export, that of the run).
      use_instructions: False leaves the tasks' instructions out.

    Raises:
      ValueError: as `Embedder.from_pretrained`, or there is a device.
    """
    if device is not None:
        raise ValueError(f"device is {device!r}; JAX's devices are chosen by `mesh`")
    source = pathlib.Path(folder_or_hub_id).expanduser()
    if (source / "hf" / "config.json").exists():
        source = source / "hf"
    is_folder = source.is_dir()
    embedder = Embedder.from_pretrained(
        source if is_folder else folder_or_hub_id,
        dtype=dtype,
        max_length=max_length,
        revision=revision,
        processing=processing,
        truncate_dim=truncate_dim,
        mesh=mesh,
    )
    experiment = {
        "dtype": None if dtype == "bfloat16" else dtype,
        "max_length": max_length,
        "processing": str(processing) if processing else None,
        "truncate_dim": truncate_dim,
        "use_instructions": None if use_instructions else False,
    }
    if name is None:
        name = f"local/{_folder_name(source)}" if is_folder else os.fspath(folder_or_hub_id)
    changed = {key: value for key, value in experiment.items() if value is not None}
    meta = model_meta(embedder, name).model_copy(update={"experiment_kwargs": changed or None})
    if meta.revision == embedder.backbone.commits.get(name):  # by which mteb can load it, too
        meta = meta.model_copy(update={"loader": load, "open_weights": True})
    return EmbedderWrapper(embedder, meta, use_instructions=use_instructions)


def model_meta(embedder: Embedder, name: str) -> ModelMeta:
    """mteb's metadata of a model, as far as its folder tells; what it was trained on is unknown.

    The revision is the hub's commit, or a hash of the folder's files, so that mteb does not take
    one model's results for those of another in the same place.
    """
    backbone = embedder.backbone
    parameters = jax.eval_shape(backbone.make_model, jax.random.key(0))
    bytes_used = sum(x.nbytes for x in jax.tree.leaves(embedder.model.parameters))
    return ModelMeta.create_empty(
        {
            "name": name,
            "revision": _revision(backbone),
            "n_parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(parameters)),
            "memory_usage_mb": bytes_used / 2**20,
            "max_tokens": float(embedder.max_length),
            "embed_dim": embedder.dimension,
            "license": _license(backbone.adapter or backbone.folder),
            "framework": ["JAX"],
            "similarity_fn_name": ScoringFunction.COSINE,
            "use_instructions": bool(backbone.instruction or any(embedder.prompts.values())),
            "training_datasets": None,
            "modalities": ["text", "image"] if backbone.layout.patches else ["text"],
        }
    )


def _instruction_of(task_metadata: "TaskMetadata", prompt_type: PromptType | None) -> str | None:
    """The task's own instruction for one side; one for both is not meant for documents."""
    said = task_metadata.prompt
    if isinstance(said, str):
        return None if prompt_type == PromptType.document else said
    sides: Mapping[str, Any] = said or {}
    return sides.get(prompt_type.value) if prompt_type else None


def _windows(
    batches: Iterable[Mapping[str, Any]], batch_size: int
) -> Iterator[Sequence[UserInput]]:
    """Items of many batches of texts, or of a few with images, whose pixels are in memory."""
    window: list[UserInput] = []
    with_images = False
    for batch in batches:
        window += _items(batch)
        with_images = with_images or "image" in batch
        if len(window) >= (IMAGE_BATCHES if with_images else TEXT_BATCHES) * batch_size:
            yield window
            window = []
    if window:
        yield window


def _items(batch: Mapping[str, Any]) -> list[UserInput]:
    columns = {key: batch[key] for key in ("text", "image") if key in batch}
    if not columns:
        raise ValueError(f"a batch has the columns {list(batch)}; texts or images are embedded")
    rows = [dict(zip(columns, values)) for values in zip(*columns.values(), strict=True)]
    return [_item(row) for row in rows]


def _item(row: Mapping[str, Any]) -> UserInput:
    item: dict[str, Any] = {}
    if row.get("image") is not None:
        item["image"] = row["image"]
    if row.get("text") or not item:
        item["text"] = row.get("text") or ""
    return item


def _revision(backbone: Backbone) -> str:
    commit = backbone.commits.get(backbone.base)
    if commit and not backbone.adapter:  # else it is of the adapter's base
        return commit
    listed = "\n".join(f"{name} {digest}" for name, digest in sorted(fingerprint(backbone).items()))
    return hashlib.blake2b(listed.encode(), digest_size=16).hexdigest()


def _folder_name(folder: pathlib.Path) -> str:
    folder = folder.resolve()
    return folder.parent.name if folder.name == "hf" else folder.name


def _license(folder: pathlib.Path) -> str | None:
    """The license that a folder's model card names, if mteb knows its name; or its address."""
    try:
        card = ModelCard.load(folder / "README.md").data
    except (OSError, ValueError):  # there is none, or its head is no YAML
        return None
    names = typing.get_args(Licenses)
    link = getattr(card, "license_link", None)
    if card.license in names:
        return str(card.license)
    return link if str(link).startswith("https://") else None
