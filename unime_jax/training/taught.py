"""Set-up of what a teacher's embeddings train: the language component alone, or the whole model."""

import dataclasses

from unime_jax import backbones
from unime_jax.data.embedding_store import Embeddings
from unime_jax.data.teacher import WithTeacher
from unime_jax.training import setup
from unime_jax.training.loss_settings import contrastive_part


def student(whole: setup.Setup, teacher: Embeddings) -> setup.Setup:
    """The language component of a model alone, and texts that come with a teacher's embeddings.

    Its parameters have the paths and values that they have in the whole model (UniME, section
    3.2.1: the language model is taken out of the MLLM and distilled on texts).

    Raises:
      ValueError: the config trains or adapts what is not in the language model.
    """
    settings = whole.settings
    backbone = backbones.language_only(whole.backbone, teacher.dimension)
    preprocess = WithTeacher(whole.preprocess, teacher, settings.data.suffix)
    part = setup.trace(settings, whole.mesh, backbone, preprocess)
    others = sorted(whole.abstract_model.trainable - part.abstract_model.trainable)
    if others:
        raise ValueError(
            "Distillation sees texts only, so the language model is all that it can train; "
            f"config.trainable also names {len(others)} other parameters, for example {others[0]}."
        )
    return part


def with_teacher(whole: setup.Setup, teacher: Embeddings) -> setup.Setup:
    """The whole model, and items that come with a teacher's embeddings.

    Raises:
      ValueError: the loss matches vectors, and the teacher's have another width than the model's.
    """
    loss = contrastive_part(whole.settings.loss)[1]
    width = whole.backbone.dimension
    if loss is not None and loss.teacher_matching_weight and teacher.dimension != width:
        raise ValueError(
            f"config.loss.teacher_matching_weight={loss.teacher_matching_weight} compares vectors, "
            f"but those of {teacher.folder} have {teacher.dimension} numbers and the model's "
            f"{width}. Use config.loss.teacher_weight, which compares similarities, or vectors cut "
            f"to {width}."
        )
    layout = dataclasses.replace(whole.shapes.layout, teacher=teacher.dimension)
    return dataclasses.replace(
        whole,
        preprocess=WithTeacher(whole.preprocess, teacher, ""),
        shapes=dataclasses.replace(whole.shapes, layout=layout),
    )
