"""Names of the tensors of LLaVA checkpoints in Hugging Face form."""

from typing import TYPE_CHECKING

from unime_jax.backbones.io import weights
from unime_jax.models.vit import VisionConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def names(config: "PretrainedConfig", tower: VisionConfig) -> weights.Names:
    """Spellings of published checkpoints, of transformers' versions and of adapters.

    Published are the names of before transformers 4.52. Since then both halves lie in `model`,
    which is left out if there is no head; since 5, the tower has no `vision_model` in it. Adapters
    may have been trained on the language model alone.
    """
    patch = tower.patch_size
    unread = range(tower.num_layers, config.vision_config.num_hidden_layers)
    return weights.Names(
        prefixes=(
            ("language_model.", "language_model.model."),
            ("vision_tower.", "vision_tower.vision_model."),
            ("multi_modal_projector.", "multi_modal_projector."),
            ("image_newline", "image_newline"),
        ),
        aliases=(
            (r"^model\.(vision_tower|multi_modal_projector|image_newline|language_model)", r"\1"),
            (
                r"^(?:model\.|language_model\.)?(embed_tokens|layers|norm)\.",
                r"language_model.model.\1.",
            ),
            (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
            (r"^lm_head\.", "language_model.lm_head."),
        ),
        modules=(
            _modules("model.", "vision_tower."),
            _modules("", "vision_tower."),
            _modules("model.", "vision_tower.vision_model."),
            _modules("", "vision_tower.vision_model."),
            weights.AS_PUBLISHED,
            (("language_model.model.", ""),),
            (("language_model.", ""),),
        ),
        unused=(
            r"language_model\.lm_head\.weight",
            r"vision_tower\.vision_model\.head\..*",
            r".*\.(position_ids|inv_freq)",  # buffers that older versions saved
            *(rf"vision_tower\.vision_model\.encoder\.layers\.{layer}\..*" for layer in unread),
        ),
        convolution=("vision_tower.embeddings.patch_embedding.kernel", (3, patch, patch)),
    )


def _modules(model: str, tower: str) -> weights.Modules:
    """Modules since transformers 4.52, in `model` or without a head."""
    return (
        ("language_model.model.", f"{model}language_model."),
        *((("language_model.lm_head.", "lm_head."),) if model else ()),
        ("vision_tower.vision_model.", f"{model}{tower}"),
        ("multi_modal_projector.", f"{model}multi_modal_projector."),
        ("image_newline", f"{model}image_newline"),
    )
