"""Checks of token ids: ids beyond the embedding's rows would read NaN on a device."""

import pathlib
from collections.abc import Iterable, Sequence

import tokenizers

HOW = (
    "give the model as many rows (transformers: model.resize_token_embeddings(len(tokenizer)), then"
    " save_pretrained of both), or leave the token out"
)


def check_tokenizer(
    folder: pathlib.Path,
    tokenizer: tokenizers.Tokenizer,
    vocab_size: int,
    *,
    always: Iterable[Sequence[int]],
) -> None:
    """Check that the ordinary ids of a tokenizer are rows of the embedding.

    Ordinary are the ids of its vocabulary, of added tokens, which any text may hold, and of the
    tokens in every prompt. Special tokens that a text would have to spell out, such as one for
    padding that was added later, are refused where they occur (`check_ids`). Rows without tokens
    are common.

    Args:
      folder: of the checkpoint, for the message.
      tokenizer: of the checkpoint.
      vocab_size: rows of the embedding.
      always: ids in every prompt.

    Raises:
      ValueError: there are such ids; the message names tokens.
    """
    added = tokenizer.get_added_tokens_decoder()
    special = {i for i, token in added.items() if token.special} - {i for x in always for i in x}
    beyond = {
        i: token
        for token, i in tokenizer.get_vocab(with_added_tokens=True).items()
        if i >= vocab_size and i not in special
    }
    if beyond:
        first = min(beyond)
        raise ValueError(
            f"{folder}: {len(beyond)} token(s) of tokenizer.json are beyond the {vocab_size} rows"
            f" of the model's embedding (vocab_size in config.json), such as {beyond[first]!r}, id"
            f" {first}; {HOW}"
        )


def check_ids(
    ids: Sequence[int], tokenizer: tokenizers.Tokenizer, vocab_size: int, name: str
) -> None:
    """Raises ValueError, for the item `name`, that names a token beyond the embedding's rows."""
    if ids and max(ids) >= vocab_size:
        beyond = next(i for i in ids if i >= vocab_size)
        raise ValueError(
            f"{name}: its token {tokenizer.id_to_token(beyond)!r} has id {beyond}, and the model's"
            f" embedding has {vocab_size} rows; {HOW}"
        )
