"""Backbone: an opened checkpoint folder, with its model, host preprocessing and tensor names."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import jax
import numpy as np

from unime_jax.backbones.dual_encoder.pair_prompt import PairPrompt
from unime_jax.backbones.io import merging, weights
from unime_jax.backbones.io.st_folder import Defaults
from unime_jax.backbones.preprocessing.processing import Processing
from unime_jax.backbones.preprocessing.prompts import Prompt
from unime_jax.backbones.texts.text_prompt import TextPrompt
from unime_jax.batch import Item, Row
from unime_jax.data.shapes import Layout
from unime_jax.models.vlm import EmbeddingModel, LanguageModel


class Preprocessor(Protocol):
    """Host side of a family; picklable."""

    def __call__(self, item: Item) -> Row:
        """One row; ValueError if the item cannot be made one."""
        ...

    @property
    def prompt(self) -> Prompt | TextPrompt | PairPrompt:
        """The prompt that words items."""
        ...


@dataclasses.dataclass(frozen=True)
class MakeModel:
    """A model with random parameters, as a function of a key.

    Functions of equal class and configuration are equal, so that what is traced and compiled for
    one serves the others, such as those of a folder that is opened twice.
    """

    model: Callable[..., Any]
    config: Any  # hashable

    def __call__(self, key: jax.Array) -> Any:
        return self.model(self.config, key=key)


@dataclasses.dataclass(frozen=True)
class MakeLanguageModel:
    """The language component of a model that another function makes whole; equal as `MakeModel`."""

    make_model: MakeModel

    def __call__(self, key: jax.Array) -> EmbeddingModel:
        return LanguageModel(self.make_model(key).language_model)


@dataclasses.dataclass(frozen=True)
class TextOnly:
    """The language component of a multimodal model, alone.

    Attributes:
      make_model: the component, with the parameters that the whole model draws from the same key.
      unread: regexes of the published names of all other tensors.
    """

    make_model: Callable[[jax.Array], EmbeddingModel]
    unread: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class LmHead:
    """The language-model head of a multimodal model, which judges use and embedders do not.

    Attributes:
      make_model: the whole model with a head that is tied to the token embeddings, or its own.
      name: published name of the head's tensor.
      path: of the head's layer in the model.
      tied: whether config.json ties the head to the token embeddings.
      preprocess: the family's preprocessing with another prompt.
      unshared: as of the decoder: why prompts cannot share their beginning; "": they can.
    """

    make_model: Callable[[Literal["tied", "own"]], MakeModel]
    name: str
    path: str
    tied: bool
    preprocess: Callable[[Prompt], Preprocessor]
    unshared: str


@dataclasses.dataclass(frozen=True)
class Backbone:
    """An opened checkpoint folder: model, preprocessing, tensor names, and what exports need.

    Attributes:
      dimension: D, of an embedding.
      make_model: the model with random parameters; under `jax.eval_shape`, just its shapes.
      layout: the form of every row.
      config_changes: keys of config.json that `processing` overrules, for exports.
      image_processor_changes: the same for the image processor's configuration.
      video_processor: settings of transformers' video processor; empty: the family has none.
      processor_config: what transformers' processor must be told beside the image processor's
        settings; exports have it in processor_config.json.
      loads_in_transformers: whether transformers, given the exported files alone, makes the same
        inputs and embeddings.
      text_only: the language component alone; None: the model has none, or is one itself.
      lm_head: the head of its language model; None: the family has none, or none is read here.
      caveats: sentences for users of transformers, on where it differs from `processing`.
      own_files: files of sentence-transformers in `folder` that an export has as they are.
      adapter: folder of a PEFT adapter that is merged into the weights of `folder`.
      base: `folder`, or the hub id that it was downloaded by.
      commits: of the hub repositories that all this came from, by id.
      defaults: prompts, dimension and length that the folder's user gets without asking.
      instruction: how published embedders of the family write a task's instruction before a text;
        "": they take none.
      convert: makes copies of the folder's files, its weights aside, those of the form that
        exports have; None: that is the form they are in.
    """

    folder: pathlib.Path
    dimension: int
    make_model: Callable[[jax.Array], EmbeddingModel]
    names: weights.Names
    preprocess: Preprocessor
    layout: Layout
    processing: Processing
    loads_in_transformers: bool
    text_only: TextOnly | None = None
    lm_head: LmHead | None = None
    config_changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    image_processor_changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    video_processor: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    processor_config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    caveats: tuple[str, ...] = ()
    adapter: pathlib.Path | None = None
    base: str = ""
    commits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    own_files: tuple[str, ...] = ()
    instruction: str = ""
    convert: Callable[[pathlib.Path], None] | None = None
    defaults: Defaults = Defaults()

    def load(self, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """The checkpoint's parameters in the given dtypes and shardings, see `weights.load`."""
        return weights.load(self.folder, targets, self.names, self._adapter())

    def save_weights(
        self, folder: pathlib.Path, parameters: Mapping[str, weights.Leaf], dtype: np.dtype
    ) -> None:
        """Writes safetensors under the folder's own names, with tensors only generation uses.

        Names are the family's published ones where the folder has no weights, or is converted.

        Raises:
          ValueError: the adapter changes a tensor that is neither a parameter nor in `folder`.
        """
        source = self.checkpoint()
        carried = source.carried()
        spell = (lambda name: [name]) if self.convert else source.spelled
        weights.save(folder, parameters, self.names, dtype, carried=carried, spell=spell)

    def checkpoint(self) -> weights.Checkpoint:
        """The checkpoint's tensors by published name, lazily, the adapter merged into them."""
        return weights.Checkpoint(self.folder, self.names, self._adapter())

    def _adapter(self) -> merging.Adapter | None:
        return merging.read(self.adapter, self.names) if self.adapter else None


def language_only(backbone: Backbone, teacher: int) -> Backbone:
    """The language component of a multimodal backbone, for texts with a teacher's embedding.

    It has the same parameters, by the same paths; of the checkpoint nothing else is read.

    Args:
      teacher: E, the width of the teacher's embeddings.

    Raises:
      ValueError: the backbone has no language component apart from the rest.
    """
    part = backbone.text_only
    if part is None:
        raise ValueError(f"{backbone.folder}: this model has no language component to take out")
    names = dataclasses.replace(backbone.names, unused=backbone.names.unused + part.unread)
    return dataclasses.replace(
        backbone,
        make_model=part.make_model,
        names=names,
        layout=dataclasses.replace(backbone.layout.without_images(), teacher=teacher),
        text_only=None,
    )


def with_lm_head(backbone: Backbone) -> Backbone:
    """A multimodal backbone with its language-model head, as a judge.

    The head is the checkpoint's own tensor where it has one, else the token embeddings.

    Raises:
      ValueError: the family's head is not read here, or the checkpoint has none and does not tie
        it.
    """
    head = backbone.lm_head
    if head is None:
        raise ValueError(
            f"{backbone.folder}: the language-model head of this family is not read here; judge by"
            " a LLaVA-OneVision, LLaVA-NeXT, Qwen2-VL, Qwen2.5-VL or Qwen3-VL"
        )
    rule = f"{head.path}.", head.name.removesuffix("weight")
    names = dataclasses.replace(backbone.names, prefixes=(rule, *backbone.names.prefixes))
    own = head.name in weights.Checkpoint(backbone.folder, names).tensors
    if not own and not head.tied:
        raise ValueError(
            f"{backbone.folder} has no {head.name}, and its config.json does not tie the head to"
            " the token embeddings (tie_word_embeddings): it is an embedder without the head that"
            " a judge answers by. Judge by the model it was made from"
        )
    kind: Literal["tied", "own"] = "own" if own else "tied"
    return dataclasses.replace(
        backbone,
        make_model=head.make_model(kind),
        names=names,
        text_only=None,
    )
