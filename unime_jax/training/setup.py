"""Set-up of every job on a training config: mesh, traced model, shapes of batches, parameters."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from absl import logging
from jax.sharding import Mesh
from jax.stages import Wrapped

from unime_jax import backbones, config, files, paths, sharding
from unime_jax.backbones.io.st_folder import Defaults
from unime_jax.batch import Item
from unime_jax.data import formats, packing, quarantine, schema
from unime_jax.data.inference_shapes import Ladder
from unime_jax.data.shapes import BatchShapes, pair_shapes
from unime_jax.inference.encode import Encoder, make_encoder
from unime_jax.models import attention, forward, frozen_vision, scan
from unime_jax.models.vlm import Execution
from unime_jax.training import (
    automatic,
    backbone_checks,
    kept_features,
    size_checks,
    state,
    step,
    step_program,
    temperature,
)
from unime_jax.training.loss_settings import JudgeDistillation, contrastive_part


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run before anything is computed; `test_shapes` are for rows that have no partner.

    `preprocess` is that of training, which may cut texts that `backbone.preprocess` leaves whole.
    """

    settings: config.TrainConfig
    mesh: Mesh
    backbone: backbones.Backbone
    preprocess: packing.Preprocess
    execution: Execution
    abstract_model: state.AbstractModel
    encode: forward.Encode
    constants: forward.Constants
    vision: frozen_vision.FrozenVision | None
    shapes: BatchShapes
    test_shapes: BatchShapes | Ladder

    def initial(self) -> paths.Parameters:
        """The parameters before the first step, always the same."""
        if self.settings.init == "pretrained" or self.settings.init_from:
            logging.info("reading the weights of %s", self.backbone.base)
        return state.make_parameters(
            self.backbone,
            self.abstract_model,
            adapters=self.settings.lora,
            init="pretrained" if self.settings.init_from else self.settings.init,
            seed=self.settings.seed,
        )

    def optimizer(self) -> optax.GradientTransformation:
        """The config's optimizer of the trainable parameters."""
        settings = self.settings
        return step_program.make_optimizer(
            settings.optimizer, settings.steps, self.abstract_model.trainable
        )

    def train_step(self, like: step.TrainState, *, sources: Sequence[str] = ()) -> Wrapped:
        """The jitted step of a state with the shardings of `like`, which may be abstract.

        `sources`: the names that `Batch.source` counts, for losses and options by source.
        """
        settings = self.settings
        placed, structure = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, like))
        program = step_program.StepProgram(
            encode=self.encode,
            constants=self.constants,
            vision=self.vision,
            optimizer=settings.optimizer,
            steps=settings.steps,
            trainable=self.abstract_model.trainable,
            loss=settings.loss,
            prefixes=settings.matryoshka,
            recompute=settings.execution.recompute,
            kept=tuple(settings.execution.kept_chunks or ()),
            merged=settings.execution.merged_chunks or 1,
            infonce_steps=settings.infonce_steps,
            sources=tuple(sources),
            placed=tuple(placed),
            structure=structure,
            mesh=self.mesh,
        )
        return step_program.jitted(program)

    def initial_state(self) -> step.TrainState:
        """The state before the first step."""
        made = state.make_state(self.abstract_model, self.initial(), self.optimizer(), self.mesh)
        learned = temperature.initial_temperature(self.settings.loss, self.mesh)
        return dataclasses.replace(made, temperature=learned)

    def encoder(self, parameters: paths.Parameters) -> Encoder:
        """Embeddings of items under these parameters, trainable and frozen."""
        parts = (
            self.abstract_model.part(parameters, trainable=True),
            self.abstract_model.part(parameters, trainable=False),
        )
        preprocess = self.backbone.preprocess
        return make_encoder(
            self.encode, parts, preprocess, self.test_shapes, self.mesh, self.constants
        )


def make_mesh(settings: config.TrainConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The config's mesh over `devices` (default: all).

    Raises:
      ValueError: it does not fit them, or the sizes of batches do not fit it.
    """
    mesh = sharding.make_mesh(settings.mesh.data, settings.mesh.fsdp, settings.mesh.tensor, devices)
    size_checks.check_sizes(settings, mesh)
    return mesh


def set_up(
    settings: config.TrainConfig,
    mesh: Mesh,
    rows: Mapping[str, formats.Source] | None = None,
    workdir: files.Path | None = None,
) -> Setup:
    """Opens the backbone, or the model of the run that this one starts from, and traces it.

    Where `data.buckets` are left to the data, training cuts texts to the largest of them, while
    evaluation and export take as many tokens as the backbone does.

    Args:
      rows: the training data by source, which open keys of the config may follow from.
      workdir: of the run, where values of open keys are recorded, see `automatic`.

    Raises:
      ValueError: a part of the config does not fit the backbone.
    """
    source = exported(settings.init_from) if settings.init_from else settings.backbone

    def opened(max_length: int | None) -> backbones.Backbone:
        return backbones.open_backbone(
            source,
            max_length=max_length,
            revision=None if settings.init_from else settings.revision,
            processing=settings.processing,
            clips=settings.data.clips,
        )

    longest = max((bucket.tokens for bucket in settings.data.buckets), default=None)
    backbone = opened(longest)
    say_what_is_not_used(source, backbone.defaults, longest)
    complete = settings
    if automatic.left_open(settings):
        complete = automatic.resolved(settings, backbone, rows or {}, workdir, mesh)
    if longest:
        return trace(complete, mesh, backbone, backbone.preprocess)
    cut = opened(complete.data.buckets[-1].tokens).preprocess
    ladder = Ladder(
        backbone.layout,
        sharding.row_shards(mesh),
        settings.evaluation.rows,
        backbone.preprocess.prompt.max_length,
    )
    return dataclasses.replace(trace(complete, mesh, backbone, cut), test_shapes=ladder)


def say_what_is_not_used(source: str, asked: Defaults, longest: int | None) -> None:
    """Logs which defaults of the backbone's folder training and evaluation do not follow.

    `longest`: the most tokens of a row; None: as many as the folder says.
    """
    ignored = []
    if asked.default_prompt_name is not None:
        prompt = asked.prompts[asked.default_prompt_name]
        ignored.append(
            f"its default prompt {prompt!r}: texts are as the data and prompts of config"
        )
    if asked.truncate_dim is not None:
        ignored.append(f"its truncate_dim {asked.truncate_dim}: embeddings are whole")
    if ignored:
        logging.warning("of %s, training and evaluation do not use %s", source, "; ".join(ignored))
    if longest is not None and asked.max_length not in (None, longest):
        logging.info(
            "rows have up to %d tokens, as config.data.buckets say; %s asks for %d",
            longest,
            source,
            asked.max_length,
        )


def exported(workdir: str) -> str:
    """The folder of the model that a run exported, or a ValueError."""
    folder = files.as_path(workdir) / "hf"
    if not (folder / "self_check.json").exists():
        raise ValueError(
            f"config.init_from={workdir}: there is no exported model in {folder}. Let that run "
            "finish, or export its newest checkpoint with --config.job=export."
        )
    return str(folder)


def trace(
    settings: config.TrainConfig,
    mesh: Mesh,
    backbone: backbones.Backbone,
    preprocess: packing.Preprocess,
) -> Setup:
    """The run of an open backbone, by shapes alone: nothing is computed or read."""
    dtype, frozen_dtype = settings.execution.dtype, settings.execution.frozen_dtype
    assert dtype and frozen_dtype and settings.trainable is not None  # resolved in set-up
    remat = settings.execution.remat
    assert remat != "auto"
    scan.check(remat, mesh)
    implementation = attention.implementation(settings.execution.attention, mesh)
    execution = Execution(jnp.dtype(dtype), remat, implementation)
    abstract_model = state.abstract_model(
        backbone,
        mesh,
        adapters=settings.lora,
        trainable=settings.trainable,
        frozen_dtype=jnp.dtype(frozen_dtype),
    )
    backbone_checks.check_texts(settings, backbone)
    backbone_checks.check_dims(settings, backbone.dimension)
    if settings.export.adapter:
        backbone_checks.check_adapter(backbone, abstract_model)
    contrast = contrastive_part(settings.loss)[1]
    shards = math.lcm(sharding.row_shards(mesh), jax.process_count())
    shapes = pair_shapes(
        settings.data.buckets,
        backbone.layout,
        batch_size=settings.batch_size,
        negatives=settings.data.negatives,
        chunk_size=settings.chunk_size,
        scored=isinstance(settings.loss, JudgeDistillation),
        graded=() if contrast is None else contrast.graded_sources,
        shards=shards,
    )
    return Setup(
        settings=settings,
        mesh=mesh,
        backbone=backbone,
        preprocess=preprocess,
        execution=execution,
        abstract_model=abstract_model,
        encode=forward.make_encode(abstract_model.graph, execution),
        constants=forward.with_column_norms(abstract_model.graph),
        vision=kept_features.choose(settings.execution, abstract_model, execution, shapes, mesh),
        shapes=shapes,
        test_shapes=BatchShapes(
            settings.data.buckets,
            backbone.layout,
            settings.chunk_size,
            settings.evaluation.rows,
            shards=shards,
        ),
    )


def examples(
    rows: Mapping[str, formats.Source], preprocess: packing.Preprocess, shapes: BatchShapes
) -> Sequence[Item]:
    """Text, images and both at once, out of the training data, for the export's self-check."""
    items = [Item("A plain text without any image.")]
    for name in sorted(rows)[:8]:
        for index in range(min(len(rows[name]), 100)):
            try:
                example = schema.to_example(name, rows[name][index], str(index))
                packing.prepare(example, preprocess, shapes)
            except quarantine.BadExample:
                continue
            items += [example.query, example.positive]
            break
    with_images = [item for item in items if item.media]
    return [*items, *(dataclasses.replace(item, text="<|image_1|>") for item in with_images[:1])]
