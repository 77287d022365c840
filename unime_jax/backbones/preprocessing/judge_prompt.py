"""The prompt of a judge: a query and a candidate in one user turn, to be answered by yes or no.

Two are published, see `PROMPTS`. Their parts are put together by the checkpoint's chat template;
those of LLaVA write all images first.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unime_jax.backbones.preprocessing import chat_templates
from unime_jax.backbones.preprocessing.prompts import Prompt, name_of
from unime_jax.batch import Item, Media
from unime_jax.data import image_markers
from unime_jax.data.settings import JudgePromptName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = Item("probe", (Media("probe"),))


@dataclasses.dataclass(frozen=True)
class Wording:
    """The words of a prompt.

    Attributes:
      system: the system turn; "": none, and what the chat template has by default.
      before: what stands before the instruction.
      instruction: the published one.
      query, candidate: what stands before the images and text of each.
      empty: the text of an item that has neither text nor images.
      answers: the published ones, yes and no.
    """

    system: str
    before: str
    instruction: str
    query: str
    candidate: str
    empty: str
    answers: tuple[str, str]


PROMPTS: Mapping[JudgePromptName, Wording] = {
    "unime_v2": Wording(  # Gu et al. 2025, arXiv 2510.13515
        system="",
        before="",
        instruction=(
            "I will provide you with a query and a candidate. Please evaluate whether the"
            " candidate meets the requirements of the query. If it does, respond with 'Yes'; if it"
            " doesn't, respond with 'No'."
        ),
        query="Query:",
        candidate="Candidate:",
        empty="",
        answers=("Yes", "No"),
    ),
    "qwen3_vl_reranker": Wording(  # Li et al. 2026, arXiv 2601.04720
        system=(
            "Judge whether the Document meets the requirements based on the Query and the Instruct"
            ' provided. Note that the answer can only be "yes" or "no".'
        ),
        before="<Instruct>: ",
        instruction="Given a search query, retrieve relevant candidates that answer the query.",
        query="<Query>:",
        candidate="\n<Document>:",
        empty="NULL",
        answers=("yes", "no"),
    ),
}


@dataclasses.dataclass(frozen=True)
class JudgePrompt:
    """The turn of a query and a candidate, by a checkpoint's chat template."""

    tokenizer: "PreTrainedTokenizerBase"
    template: str  # Jinja source
    tokens: Mapping[str, str]  # of images and clips, by kind
    wording: Wording

    def item(self, query: Item, candidate: Item) -> Item:
        """The whole prompt as an item, with a token where each image or clip goes.

        Image markers of the texts are left out, as in "chat" prompts.

        Raises:
          ValueError: the template fails, or writes another number of tokens of images or clips
            than there are.
        """
        media = query.media + candidate.media
        try:
            rendered: Any = self.tokenizer.apply_chat_template(
                messages(self._bare(query), self._bare(candidate), self.wording),
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:  # a template is a program, and fails as one
            raise ValueError(
                f"the chat template fails on a judge's turn ({error}): {self.template[:200]!r}"
            ) from error
        for kind, token in self.tokens.items():
            written, wanted = rendered.count(token), sum(each.kind == kind for each in media)
            if written != wanted:
                raise ValueError(
                    f"{name_of(query)} and {name_of(candidate)} have {wanted} {kind}s, but the chat"
                    f" template writes {token!r} {written} times: it is probably the language"
                    " model's own"
                )
        return Item(rendered, media)

    def _bare(self, item: Item) -> Item:
        text, _ = image_markers.without_markers(item.text, *self.tokens.values())
        return Item(text.strip(), item.media)


def messages(query: Item, candidate: Item, wording: Wording) -> list[dict[str, Any]]:
    """The turns as transformers' chat templates take them."""
    system = [{"role": "system", "content": [_text(wording.system)]}] if wording.system else []
    content = [
        _text(wording.before + wording.instruction),
        _text(wording.query),
        *_parts(query, wording),
        _text(wording.candidate),
        *_parts(candidate, wording),
    ]
    return [*system, {"role": "user", "content": content}]


def open_judge_prompt(
    folder: pathlib.Path, tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, wording: Wording
) -> tuple[JudgePrompt, Prompt]:
    """The judge's prompt of a checkpoint, and the `Prompt` that makes rows of its items.

    Args:
      prompt: of the opened backbone.

    Raises:
      ValueError: there is no chat template, or it does not do for such a turn.
    """

    def make(template: str) -> JudgePrompt:
        tokens = {"image": prompt.image_token}
        if prompt.clip_token not in ("", prompt.image_token):
            tokens["clip"] = prompt.clip_token
        made = JudgePrompt(tokenizer, template, tokens, wording)
        text = made.item(_PROBE, _PROBE).text
        words = wording.system, wording.before + wording.instruction
        if not all(part in text for part in words) or text.count(_PROBE.text) != 2:
            raise ValueError(f"the chat template leaves texts of a judge's turn out: {text!r}")
        return made

    judge = chat_templates.use(folder, make)
    bos = tokenizer.bos_token  # as transformers: one that the template writes is not added again
    special_tokens = bos is None or not judge.item(_PROBE, _PROBE).text.startswith(bos)
    # Of an embedder's own kind of prompt, whose turns are others, the plain part.
    plain = Prompt(**{x.name: getattr(prompt, x.name) for x in dataclasses.fields(Prompt)})
    whole = dataclasses.replace(plain, style="raw", frames=(), special_tokens=special_tokens)
    return judge, whole


def answer_tokens(
    tokenizer: "PreTrainedTokenizerBase", answers: tuple[str, str]
) -> tuple[int, int]:
    """The first token of each answer.

    Raises:
      ValueError: an answer has no token, or both begin with the same one.
    """
    ids = [tokenizer.encode(answer, add_special_tokens=False) for answer in answers]
    if not all(ids) or ids[0][0] == ids[1][0]:
        raise ValueError(
            f"the answers {answers[0]!r} and {answers[1]!r} are tokens {ids[0]} and {ids[1]}; each"
            " must begin with a token of its own"
        )
    return ids[0][0], ids[1][0]


def _parts(item: Item, wording: Wording) -> list[dict[str, str]]:
    kinds = ["image" if media.kind == "image" else "video" for media in item.media]
    media = [{"type": kind, kind: media.path} for kind, media in zip(kinds, item.media)]
    text = item.text or ("" if media else wording.empty)
    return [*media, *([_text(text)] if text else [])]


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
