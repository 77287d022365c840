"""Models of mteb in our evaluation.

import mteb
from unime_jax.integrations import mteb_peers
from unime_jax.jobs import evaluate

model = mteb.get_model("Alibaba-NLP/gme-Qwen2-VL-2B-Instruct")
peer = mteb_peers.peer(model, batch_size=32)
evaluate.run(config, workdir, peer)  # config of experiments/evaluate.py
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32

from unime_jax.batch import Item
from unime_jax.evaluation.encoding.item_table import Encode
from unime_jax.evaluation.peer import Peer
from unime_jax.integrations.peer_inputs import (
    PeerInput,
    by_modality,
    encode_windows,
    sum_of_modalities,
    versions,
)

try:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import PromptType
    from torch.utils.data import DataLoader, Dataset
except ImportError as error:
    raise ImportError(
        f"unime_jax.integrations.mteb_peers needs mteb 2.20 or newer ({error}): pip install"
        " 'unime_jax[eval]'"
    ) from error

if TYPE_CHECKING:
    from mteb.models.models_protocols import EncoderProtocol

NAME = "UnimeJaxEvaluation"  # of the task that models are told of


def peer(
    model: "EncoderProtocol",
    *,
    batch_size: int,
    late_fusion: bool = False,
    task_metadata: TaskMetadata | None = None,
    prompt_type: PromptType | None = None,
) -> Peer:
    """A model of mteb for `jobs.evaluate.run`; arguments are those of `encoder`."""
    meta = model.mteb_model_meta
    encode = encoder(
        model,
        batch_size=batch_size,
        late_fusion=late_fusion,
        task_metadata=task_metadata,
        prompt_type=prompt_type,
    )
    used = versions("mteb", "transformers", "torch")
    task = task_metadata or metadata(meta.modalities)
    provenance = {
        "library": "mteb",
        "versions": used,
        "model": [meta.name, meta.revision],
        "experiment": dict(meta.experiment_kwargs or {}),
        "late_fusion": late_fusion,
        "task": task.model_dump(mode="json"),
        "prompt_type": prompt_type.value if prompt_type else None,
    }
    return Peer(str(meta.name), encode, provenance, used)


def encoder(
    model: "EncoderProtocol",
    *,
    batch_size: int,
    late_fusion: bool = False,
    task_metadata: TaskMetadata | None = None,
    prompt_type: PromptType | None = None,
) -> Encode:
    """An encode function of an evaluation around a model object of mteb.

    Texts are as the data have them, but for image markers (`peer_inputs.peer_input`); what the
    model itself writes around them is up to it, `task_metadata` and `prompt_type`. Texts, images,
    and items of both are loaders of their own. The function raises ValueError for a modality that
    the model's metadata do not have, and for an item with several images.

    Args:
      batch_size: items of a batch; the images of 16 batches are in memory.
      late_fusion: an item with both is the sum of the unit vectors of its image and its text.
      task_metadata: of the task that the model is told of; None: `metadata`, without a prompt.
      prompt_type: the side of all items; None: none.
    """
    modalities = model.mteb_model_meta.modalities
    task = task_metadata or metadata(modalities)

    def encode_alike(inputs: Sequence[PeerInput]) -> Float[np.ndarray, "n D"]:
        rows = [_row(given) for given in inputs]
        encoded = model.encode(
            DataLoader(_Rows(rows), batch_size=batch_size, collate_fn=_collated),
            task_metadata=task,
            hf_split="test",
            hf_subset="default",
            prompt_type=prompt_type,
            batch_size=batch_size,
            show_progress_bar=False,
        )
        return np.asarray(encoded, np.float32)

    def encode_inputs(inputs: Sequence[PeerInput]) -> Float32[np.ndarray, "n D"]:
        for given in inputs:
            _check(given, modalities)
        return by_modality(inputs, encode_alike)

    def encode(items: Sequence[Item]) -> Float32[np.ndarray, "n D"]:
        def fused(inputs: Sequence[PeerInput]) -> Float32[np.ndarray, "n D"]:
            return sum_of_modalities(inputs, encode_inputs)

        return encode_windows(items, fused if late_fusion else encode_inputs, batch_size=batch_size)

    return encode


def metadata(modalities: Sequence[str]) -> TaskMetadata:
    """Metadata of an evaluation of ours as a task of mteb: retrieval, without an instruction."""
    return TaskMetadata(
        name=NAME,
        description="Items of an evaluation outside mteb.",
        dataset={"path": "local", "revision": "none"},
        type="Any2AnyRetrieval" if "image" in modalities else "Retrieval",
        modalities=[name for name in ("text", "image") if name in modalities],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )


def _check(given: PeerInput, modalities: Sequence[str]) -> None:
    for kind, needed in (("image", bool(given.images)), ("text", given.text is not None)):
        if needed and kind not in modalities:
            raise ValueError(
                f"{given.name}: the metadata of this model have the modalities"
                f" {', '.join(modalities)}, so it is given no {kind}"
            )
    if len(given.images) > 1:
        raise ValueError(f"{given.name}: {len(given.images)} images; an item of mteb has one")


class _Rows(Dataset):
    """Rows with the same columns; mteb's models look for these in `features`."""

    def __init__(self, rows: Sequence[dict[str, Any]]):
        self.features = dict.fromkeys(rows[0])
        self.column_names = list(rows[0])
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index]


def _collated(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _row(given: PeerInput) -> dict[str, Any]:
    text = {} if given.text is None else {"text": given.text}
    return text | ({"image": given.images[0]} if given.images else {})
