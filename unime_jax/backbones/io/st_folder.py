"""Files of sentence-transformers in a model folder: settings honoured, or refused by name.

A folder is one of sentence-transformers if it has a modules.json. Its first module is the model
itself, which a family opens; the others pool its last hidden states, if the model does not pool
itself, and scale them to length one.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from unime_jax.data.settings import Style

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
# Of the first module, the first that exists; newer folders have the first name.
SETTINGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
FLAGS = "pooling_mode_"  # older files have one for each kind of pooling
# Older names of keys in SETTINGS.
RENAMED = {
    "model_args": "model_kwargs",
    "tokenizer_args": "processor_kwargs",
    "config_args": "config_kwargs",
}
# Keys in SETTINGS that change no embedding, or are honoured.
PROCESSOR_KWARGS = ("model_max_length", "use_fast", "padding_side", "truncation_side", "backend")
IMAGE_KWARGS = ("max_num_patches", "patch_size")
TEXT_KWARGS = ("max_length", "padding", "padding_side", "truncation", "pad_to_multiple_of")


@dataclasses.dataclass(frozen=True)
class Defaults:
    """Defaults of a folder for arguments that its user leaves out.

    Attributes:
      prompts: strings before a text, by name.
      default_prompt_name: prompt of a call that names none; None: no prompt.
      truncate_dim: how many numbers of an embedding are kept; None: all.
      max_length: the most tokens of a row; None: the folder does not say.
    """

    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt_name: str | None = None
    truncate_dim: int | None = None
    max_length: int | None = None

    def prompt(self, text: str | None, name: str | None) -> str:
        """Prompt of a call: given itself, given by its name, or the folder's default.

        Raises:
          ValueError: both are given, or there is no prompt of that name.
        """
        if text is not None and name is not None:
            raise ValueError(f"prompt is {text!r} and prompt_name is {name!r}; give one of them")
        if text is not None:
            return text
        name = self.default_prompt_name if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(map(repr, sorted(self.prompts))) or "none at all"
            raise ValueError(
                f"there is no prompt {name!r}; the folder's {PROMPTS} has {known}. Give the prompt"
                " itself as `prompt`"
            )
        return self.prompts[name]


def is_one(folder: pathlib.Path) -> bool:
    """Whether sentence-transformers has its own files in the folder."""
    return (folder / MODULES).exists()


def read_defaults(folder: pathlib.Path, *, pooled: bool = True) -> Defaults:
    """Prompts and dimension of a folder, without a length; empty ones if it has no such files.

    Args:
      pooled: see `kinds`.

    Raises:
      ValueError: the files contradict each other, or ask for a similarity that is no cosine.
    """
    if not is_one(folder):
        return Defaults()
    file = folder / PROMPTS
    content = _read(file)
    prompts = {name: text or "" for name, text in (content.get("prompts") or {}).items()}
    default, dim = content.get("default_prompt_name"), content.get("truncate_dim")
    if default is not None and default not in prompts:
        known = ", ".join(map(repr, sorted(prompts))) or "none"
        raise ValueError(f"{file}: default_prompt_name is {default!r}, and prompts are {known}")
    if dim is not None and (not isinstance(dim, int) or dim < 1):
        raise ValueError(f"{file}: truncate_dim is {dim!r}; it must be a positive number, or null")
    similarity = content.get("similarity_fn_name") or "cosine"
    normalized = kinds(folder, pooled=pooled)[-1] == "Normalize"
    # Of vectors of length one, all but "manhattan" order neighbours as the cosine does.
    if similarity != "cosine" and (similarity == "manhattan" or not normalized):
        raise ValueError(
            f"{file}: similarity_fn_name is {similarity!r}, of embeddings"
            f" {'of length one' if normalized else 'of any length'}; embeddings have length one"
            " here, and are compared by their cosine. Set it to 'cosine' if that will do"
        )
    return Defaults(prompts, default, dim)


def files(folder: pathlib.Path) -> tuple[str, ...]:
    """Names of the folder's files of sentence-transformers."""
    pooling = pooling_file(folder).relative_to(folder).as_posix()
    return (MODULES, *(name for name in SETTINGS if (folder / name).exists()), PROMPTS, pooling)


def kinds(folder: pathlib.Path, *, pooled: bool = True) -> list[str]:
    """Class names of the modules, in order.

    Args:
      pooled: whether there is a module for pooling; else the model has its own.

    Raises:
      ValueError: others than Transformer, Pooling and maybe Normalize, or ones with other input.
    """
    file = folder / MODULES
    modules = _read(file)
    names = [module["type"].rpartition(".")[2] for module in modules]
    for module in modules:
        if not module["type"].startswith("sentence_transformers."):
            raise ValueError(
                f"{file}: {module['type']} is code of the folder's own, which is not run. Without"
                f" {MODULES} the folder is opened as a plain model"
            )
    model = ["Transformer", "Pooling"] if pooled else ["Transformer"]
    if names not in (model, [*model, "Normalize"]):
        raise ValueError(
            f"{file}: the modules are {', '.join(names)}; only {', '.join(model)} and"
            " Normalize are supported"
        )
    if modules[0]["path"]:
        raise ValueError(
            f"{file}: path of Transformer is {modules[0]['path']!r}; it must be '', the folder"
            " itself"
        )
    for module in modules[len(model) :]:
        settings = folder / module["path"] / "config.json"
        for key, place in _read(settings).items():
            if key.startswith("module_") and place not in (None, "sentence_embedding"):
                raise ValueError(f"{settings}: {key} is {place!r}; it must be 'sentence_embedding'")
    return names


def pooling_file(folder: pathlib.Path) -> pathlib.Path:
    """File of the pooling module's settings."""
    return folder / _read(folder / MODULES)[1]["path"] / "config.json"


def pooling(folder: pathlib.Path, supported: Sequence[str]) -> str:
    """Pooling of the folder, one of `supported`.

    Raises:
      ValueError: another pooling, or several.
    """
    file = pooling_file(folder)
    settings = _read(file)
    on = [key.removeprefix(FLAGS) for key in settings if key.startswith(FLAGS) and settings[key]]
    flags = " and ".join(key.removesuffix("_tokens").removesuffix("_token") for key in on)
    mode = settings.get("pooling_mode", flags or "mean")
    if isinstance(mode, list) and len(mode) == 1:
        (mode,) = mode
    everything = settings.get("include_prompt", True)
    # The last token is never a prompt's; NV-Embed leaves the prompt out itself.
    if mode not in supported or ("cls" in supported and not everything):
        raise ValueError(
            f"{file}: pooling is {mode}, include_prompt {everything}; only"
            f" {' and '.join(supported)} over all tokens, the prompt's too, are supported"
        )
    return cast(str, mode)


def check(folder: pathlib.Path, poolings: Sequence[str]) -> None:
    """Raises ValueError that names an unsupported setting of the folder's files.

    `poolings` are those of the family; (): its models pool themselves.
    """
    kinds(folder, pooled=bool(poolings))
    if poolings:
        pooling(folder, poolings)
    file, settings = _settings(folder)

    def expect(key: str, value: Any, *allowed: Any) -> None:
        if value not in (None, *allowed):
            raise ValueError(f"{file}: {key} is {value!r}; only {allowed[0]!r} is supported")

    expect("transformer_task", settings.get("transformer_task"), "feature-extraction")
    output, field = "token_embeddings", "last_hidden_state"
    if not poolings:
        output, field = "sentence_embedding", "pooler_output"
    expect("module_output_name", settings.get("module_output_name"), output)
    for name, modality in settings.get("modality_config", {}).items():
        where = f"modality_config.{name}"
        method = "forward" if poolings else f"get_{name}_features"
        expect(f"{where}.method", modality.get("method"), method)
        expect(f"{where}.method_output_name", modality.get("method_output_name"), field, [field])
    if "cls" not in poolings:  # encoders honour it
        expect("do_lower_case", settings.get("do_lower_case"), False)
    processing = settings.get("processing_kwargs", {})
    groups = {
        "processor_kwargs": (settings.get("processor_kwargs", {}), PROCESSOR_KWARGS),
        "config_kwargs": (settings.get("config_kwargs", {}), ()),
        "processing_kwargs.common": (processing.get("common", {}), ("return_tensors", "padding")),
        "processing_kwargs.text": (processing.get("text", {}), TEXT_KWARGS),
        "processing_kwargs.image": (
            processing.get("image", {}),
            () if poolings else IMAGE_KWARGS,
        ),
    }
    for group, (values, allowed) in groups.items():
        for key in values:
            if key not in (*allowed, "trust_remote_code"):
                raise ValueError(
                    f"{file}: {group}.{key} is {values[key]!r}, which is not supported; take it"
                    " out if embeddings may do without it"
                )
    truncation = processing.get("text", {}).get("truncation", True)
    expect("processing_kwargs.text.truncation", truncation, True, "longest_first", "only_first")


def setting(folder: pathlib.Path, key: str) -> Any:
    """Value of a key in the first module's file; None: it is missing."""
    return _settings(folder)[1].get(key)


def padding(folder: pathlib.Path) -> str | bool:
    """Padding of texts by the first module's file; True: to the longest of a batch."""
    _, settings = _settings(folder)
    chosen: str | bool = settings.get("processing_kwargs", {}).get("text", {}).get("padding", True)
    return chosen


def max_seq_length(folder: pathlib.Path) -> int | None:
    """The most tokens of a row by the first module's file; None: it does not say."""
    _, settings = _settings(folder)
    text = settings.get("processing_kwargs", {}).get("text", {})
    processor = settings.get("processor_kwargs", {})
    return (
        text.get("max_length")
        or processor.get("model_max_length")
        or settings.get("max_seq_length")
        or None
    )


def tokenizer_setting(folder: pathlib.Path, key: str) -> Any:
    """Value of a key for the tokenizer, in the first module's file or its own; None: missing."""
    processor = _settings(folder)[1].get("processor_kwargs", {})
    return processor.get(key, _read(folder / "tokenizer_config.json").get(key))


def style(folder: pathlib.Path) -> Style | None:
    """Prompt style of the chat template that our exports write; None: there is none, or another.

    A folder with such a template has no processing that only we know: no resizing, no old
    padding, and markers without an image are left out.
    """
    if not is_one(folder):
        return None
    processing = setting(folder, "processing_kwargs") or {}
    template = processing.get("chat_template", {}).get("chat_template", "")
    if not template.startswith("{%- set frames = ") or "turn = namespace(" not in template:
        return None
    pattern = r"^\{%- set (frames|strip|in_front|system) = (.*) -%\}$"
    values = {
        name: json.loads(value) for name, value in re.findall(pattern, template, re.MULTILINE)
    }
    if values.get("system"):  # older ones never have it
        return "system"
    if values["strip"]:
        return "chat"
    # Older ones do not say whether the image goes to the front.
    in_front = values.get("in_front", values["frames"][0] != ["", ""])
    return "verbatim" if in_front else "raw"


def _settings(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]]:
    """The first module's file and its settings, under today's names."""
    for name in SETTINGS:
        if (folder / name).exists():
            settings = _read(folder / name)
            return folder / name, {RENAMED.get(key, key): x for key, x in settings.items()}
    return folder / SETTINGS[0], {}


def _read(file: pathlib.Path) -> Any:
    return json.loads(file.read_text("utf-8")) if file.exists() else {}
