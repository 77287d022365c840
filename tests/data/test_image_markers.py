"""The grammar of image markers, and that the template for sentence-transformers has the same one.

Our own parser, with regular expressions, is the oracle of the Jinja template that exports carry.
"""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.tables import for_each
from unime_jax.backbones.preprocessing.open_prompts import open_prompt
from unime_jax.backbones.preprocessing.prompts import Prompt
from unime_jax.batch import Item, Media
from unime_jax.data.image_markers import DEEPEST, without_markers
from unime_jax.export import folder as hf_folder
from unime_jax.export import sentence_transformers as layout

FAMILIES = {"onevision": write_folder, "mistral": write_llava_next, "qwen2_vl": write_qwen2_vl}
IMAGE_TOKENS = {"onevision": "<image>", "mistral": "<image>", "qwen2_vl": "<|image_pad|>"}
CLIP_TOKENS = {"onevision": "<video>", "qwen2_vl": "<|video_pad|>"}


def test_what_a_marker_is_also_in_a_long_text(prompts):
    assert without_markers("<im<image>age>\nx <|image_2|>", "<image>") == ("x ", 3)

    # What a marker is
    for text, expected, count in [
        ("<|image_1|>\nx", "x", 1),
        ("<|image_1|>\n\nx", "\nx", 1),
        ("a <|image_9|> b <|image_10|> <|image_123456|>", "a  b  ", 3),
        ("<|image_01|>x<|image_0|>", "x", 2),
        ("<|video_1|>\nx<|image_1|><|video_12|>", "x", 3),
        ("<|video_|> <|Video_1|> <|video_pad|> <|audio_1|> <|image_video_1|>", None, 0),
        ("<|video_<|image_1|>1|>", "", 2),
        ("<|image_|> <|image_x|> <|image_1> <|image_ 1|> <|image_-1|> <|image_1", None, 0),
        ("<|image_\u0661|> <|image_1\u00b2|> <|IMAGE_1|> <|image_pad|>", None, 0),
        ("<|image_<|image_1|>1|>\nx", "x", 2),
        ("<|image_<|image_<|image_1|>2|>3|>", "", 3),
        ("<|image_1|><|image_2|>\nx", "x", 2),
        ("<image>\n", None, 0),
    ]:
        assert without_markers(text) == (text if expected is None else expected, count)

    # A long text full of them: in bounded time, and beyond what a loop of the sandbox may count to.
    prompt = prompts["onevision", "chat"]
    source = layout.chat_template_of(**hf_folder.wording(prompt))
    for text in ("<|image_1|>\na" * 2000, "a < b > c " * 20_000):
        assert rendered(source, "", text, []) == prompt.rendered(Item(text))


@for_each("depth", [90, 200_000])
def test_deep_nesting_is_done_or_refused_at_once(depth):
    text = "<|image_1" * depth + "|>" * depth
    if depth < DEEPEST:
        assert without_markers(text) == ("", depth)
        return
    with pytest.raises(ValueError, match="more than 100 deep"):
        without_markers(text)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> dict[tuple[str, str], Prompt]:
    found = {}
    for family, write in FAMILIES.items():
        folder = write(tmp_path_factory.mktemp(family))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        token = tokenizer.convert_tokens_to_ids(IMAGE_TOKENS[family])
        clip_token = CLIP_TOKENS.get(family)
        for style in ("chat", "verbatim", "raw"):
            found[family, style] = open_prompt(
                folder,
                tokenizer,
                image_token_id=token,
                vocab_size=len(tokenizer),
                style=style,
                max_length=10_000,
                clip_token_id=clip_token and tokenizer.convert_tokens_to_ids(clip_token),
            )
    return found


def rendered(source: str, prefix: str, text: str, kinds: Sequence[str]) -> str:
    """As sentence-transformers does: a prompt is a system turn, before images and text."""
    content = [{"type": "video" if kind == "clip" else kind} for kind in kinds]
    content.append({"type": "text", "text": text})
    turns = [
        {"role": "system", "content": [{"type": "text", "text": prefix}]},
        {"role": "user", "content": content},
    ]
    return render_jinja_template(conversations=[turns], chat_template=source)[0][0]


MARKERS = ("<|image_1|>", "<|image_2|>", "<|video_10|>", "<|image_01|>", "IMAGE", "CLIP")
PIECES = (
    "<|image_",
    "<|video_",
    "<|",
    "1",
    "0",
    "|>",
    "|",
    "\n",
    " ",
    "a",
    "<",
    "<im",
    "age>",
    "pad|>",
    "\u0661",
)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([(f, s) for f in FAMILIES for s in ("chat", "verbatim", "raw")]),
    st.lists(st.sampled_from(MARKERS + PIECES), max_size=4),
    st.lists(st.sampled_from(MARKERS + PIECES), max_size=16),
    st.lists(st.sampled_from(["image", "clip"]), max_size=3),
)
def test_the_template_of_exports_reads_markers_as_we_do(prompts, key, prefix, text, kinds):
    prompt = prompts[key]
    tokens = {"IMAGE": prompt.image_token, "CLIP": prompt.clip_token}
    prefix, text = (
        "".join(tokens.get(piece, piece) for piece in pieces) for pieces in (prefix, text)
    )
    if not prompt.clip_token:
        kinds = ["image"] * len(kinds)
    media = tuple(Media(f"{i}", b"x", kind=kind) for i, kind in enumerate(kinds))
    expected = prompt.rendered(Item(text, media, prefix=prefix))
    source = layout.chat_template_of(**hf_folder.wording(prompt))
    assert rendered(source, prefix, text, kinds) == expected
