"""Model card of an exported or merged folder, from files of the run alone."""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np

from unime_jax import files
from unime_jax.backbones import Backbone
from unime_jax.backbones.dual_encoder.pair_prompt import PairPrompt
from unime_jax.backbones.io import json_files
from unime_jax.backbones.preprocessing import system_prompt
from unime_jax.backbones.preprocessing.prompts import Prompt
from unime_jax.backbones.preprocessing.system_prompt import SystemPrompt
from unime_jax.batch import Item
from unime_jax.config import MergeConfig, TrainConfig
from unime_jax.data.strange_texts import markdown, markdown_block, markdown_code
from unime_jax.evaluation import score_table, scores
from unime_jax.export import row_facts, sentence_transformers, training_facts

EXAMPLES = 4  # prompts that are shown
LENGTH = 1000  # characters of them
_HUB_ID = re.compile(r"[A-Za-z][\w.-]*/[\w.-]+", re.ASCII)
METHODS = {  # what the card calls them
    "linear": "linear: the weighted mean of all weights",
    "slerp": "slerp: spherical interpolation, tensor by tensor",
    "ties": "TIES: trimmed differences from the base, where their signs agree",
    "dare_ties": "DARE-TIES: differences from the base dropped at random, where their signs agree",
}


def write(
    folder: files.Path,
    workdir: files.Path,
    settings: TrainConfig,
    backbone: Backbone,
    *,
    steps: int,
    cosine: float,
    items: Sequence[Item],
    sources: Sequence[str],
    warnings: Sequence[str],
) -> None:
    """Writes <folder>/README.md.

    Args:
      folder: the export.
      workdir: of the run; its config.json and evaluation.json are quoted.
      settings: of the run.
      backbone: that it started from.
      steps: done when the weights were exported.
      cosine: the lowest of the self-check.
      items: of the self-check.
      sources: names of the training sources.
      warnings: sentences on a training that learnt little or nothing.
    """
    sides = scores.read_scores(workdir)
    text = _template().render(
        **_of_any(folder, folder.name, workdir, backbone, items),
        base_models=_hub_ids([settings.backbone]),
        merge=False,
        origin=f"{_origin(settings, backbone)} It was trained with unime_jax.",
        cosine=cosine,
        dims=_dims(settings, backbone, steps),
        truncate_dim=settings.export.truncate_dim,
        rows=training_facts.table(settings, steps, sources) | _warning(warnings),
        scores=markdown_block(score_table.table(sides.get("before"), sides.get("after")))
        if sides
        else "",
        evaluated=", ".join(map(markdown, sides["after"]["datasets"])) if "after" in sides else "",
    )
    files.write_whole(folder / "README.md", text)


def write_merged(
    folder: pathlib.Path,
    name: str,
    workdir: files.Path,
    settings: MergeConfig,
    backbone: Backbone,
    *,
    dtype: np.dtype,
    items: Sequence[Item],
    warnings: Sequence[str],
) -> None:
    """Writes <folder>/README.md of a merge.

    Args:
      folder: the merged model.
      name: that `folder` will have.
      workdir: of the merge; its config.json is quoted.
      settings: of the merge.
      backbone: the first part.
      dtype: of the weights.
      items: of the self-check.
      warnings: sentences on what the parts have in different ways.
    """
    weights = settings.weights or (1.0,) * len(settings.models)
    rows = {"method": METHODS[settings.method]}
    rows |= {
        f"part {i + 1}, weight {weight:g}": markdown_code(model)
        for i, (model, weight) in enumerate(zip(settings.models, weights, strict=True))
    }
    if settings.base:
        rows["base"] = markdown_code(settings.base)
        rows["density"] = f"{settings.density:g}"
        rows["scale"] = f"{settings.scale:g}"
        rows["sums divided by weights"] = "yes" if settings.normalize else "no"
    if settings.method == "dare_ties":
        rows["seed"] = str(settings.seed)
    rows["weights"] = dtype.name
    origin = (
        f"It is a merge of {len(settings.models)} models, made with unime_jax; merge.json beside it"
        " has the hashes of their files."
    )
    text = _template().render(
        **_of_any(folder, name, workdir, backbone, items),
        base_models=_hub_ids([*settings.models, *([settings.base] if settings.base else [])]),
        merge=True,
        origin=origin,
        cosine=None,
        dims=(),
        truncate_dim=None,
        rows=rows | _warning(warnings),
        scores="",
        evaluated="",
    )
    files.write_whole(folder / "README.md", text)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("model_card.md.j2")


def _of_any(
    folder: files.Path, name: str, workdir: files.Path, backbone: Backbone, items: Sequence[Item]
) -> dict[str, Any]:
    """What the cards of trained and of merged models say in the same words."""
    prompts = [_shortened(repr(backbone.preprocess.prompt.rendered(item))) for item in items]
    return {
        "name": markdown(files.resolved(workdir).name),
        "folder": name,
        "dimension": backbone.dimension,
        "max_length": backbone.preprocess.prompt.max_length,
        "caveats": backbone.caveats,
        "separate": isinstance(backbone.preprocess.prompt, PairPrompt),
        "bidirectional": _is_bidirectional(folder),
        "state": row_facts.FINAL_NORM[backbone.processing.final_norm],
        "default_instruction": system_prompt.DEFAULT,
        "nothing": system_prompt.NOTHING,
        **_system_turn(backbone),
        "differences": _differences(backbone),
        "examples": list(dict.fromkeys(prompts))[:EXAMPLES],
        "config": markdown_block((workdir / "config.json").read_text().strip(), "json"),
    }


def _system_turn(backbone: Backbone) -> dict[str, Any]:
    """Whether instructions are a system turn, and the tokens that end sequences then."""
    prompt = backbone.preprocess.prompt
    if not isinstance(prompt, SystemPrompt):
        return {"system_turn": False, "ending": ""}
    tokens = (f"`{prompt.tokenizer.id_to_token(token)}`" for token in prompt.ending())
    return {"system_turn": True, "ending": " ".join(tokens)}


def _hub_ids(models: Sequence[str]) -> list[str]:
    """Models that are no paths, as YAML values."""
    return [_yaml(model) for model in models if not files.as_path(model).exists()]


def _differences(backbone: Backbone) -> tuple[str, ...]:
    prompt = backbone.preprocess.prompt
    if isinstance(prompt, PairPrompt):
        return sentence_transformers.SEPARATE
    if not isinstance(prompt, Prompt):
        return ()
    _, after = prompt.image_frames()[0]
    return sentence_transformers.differences(prompt.max_length, suffix=bool(after))


def _dims(settings: TrainConfig, backbone: Backbone, steps: int) -> tuple[int, ...]:
    """Numbers of the embeddings that were trained: of prefixes, and the whole; (): no prefixes."""
    dims = settings.matryoshka.dims
    return (*dims, backbone.dimension) if dims and steps else ()


def _origin(settings: TrainConfig, backbone: Backbone) -> str:
    name = markdown_code(settings.backbone)
    if settings.init_from:
        run = markdown_code(pathlib.Path(settings.init_from).name)
        return f"It started from the result of the run {run}, of {name}."
    start = "has the architecture of" if settings.init == "random" else "started from"
    commits = [
        f"{markdown_code(hub_id)} at commit `{commit}`"
        for hub_id, commit in backbone.commits.items()
    ]
    origin = f" On the Hugging Face hub that was {' and '.join(commits)}." if commits else ""
    return f"It {start} {name}.{origin}"


def _is_bidirectional(folder: files.Path) -> bool:
    """True if config.json has `is_causal: false`, a key that transformers 4 does not read."""
    config = json_files.read(folder / "config.json")
    parts = (config, config.get("text_config") or {})
    return any(part.get("is_causal") is False for part in parts)


def _yaml(text: str) -> str:
    """YAML value of a text: quoted, unless it is a hub id."""
    return text if _HUB_ID.fullmatch(text) else json.dumps(text)


def _shortened(text: str) -> str:
    return text if len(text) <= LENGTH else f"{text[:LENGTH]} ..."


def _warning(warnings: Sequence[str]) -> dict[str, str]:
    """Row of the training's warnings; {} without any."""
    return {"**warning**": markdown("; ".join(warnings))} if warnings else {}
