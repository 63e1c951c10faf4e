"""Whether a tokenizer belongs to a model. Where it does not, nothing fails by itself: the model's text is babble. No jax here."""

from __future__ import annotations

from collections.abc import Iterable

from .config import TrOCRConfig
from .tokens import Tokenizer

UNUSED = 256
"""Most rows of a vocabulary that may belong to no token: trocr-small's has 42; padding to a multiple adds fewer than this."""
_IDS = ("bos_token_id", "pad_token_id", "eos_token_id")


def disagreements(config: TrOCRConfig, tokenizer: Tokenizer) -> list[str]:
    """The points on which a model and a tokenizer disagree, a clause each; empty where they belong together."""
    return [*_ids(config, tokenizer, _IDS), *_sizes(config, tokenizer, UNUSED)]


def misreadings(config: TrOCRConfig, tokenizer: Tokenizer) -> list[str]:
    """Those disagreements that make a model's text wrong: its end token is not one of the tokenizer's, or tokens have no row.

    The others are unusual and harmless to read with: reading uses neither the tokenizer's beginning nor its padding, which
    a config may leave out, and a small tokenizer may have been trained with rows to spare.
    """
    ends = {tokenizer.eos_token_id, *tokenizer.encode("")[-1:]}  # a lone tokenizer.json may close labels with another token
    ids = [] if config.eos_token_id in ends else _ids(config, tokenizer, ["eos_token_id"])
    return [*ids, *_sizes(config, tokenizer, config.decoder.vocab_size)]


def _ids(config: TrOCRConfig, tokenizer: Tokenizer, names: Iterable[str]) -> list[str]:
    pairs = {name: (getattr(config, name), getattr(tokenizer, name)) for name in names}
    return [f"{x} is {ours} in the model and {theirs} in the tokenizer" for x, (ours, theirs) in pairs.items() if ours != theirs]


def _sizes(config: TrOCRConfig, tokenizer: Tokenizer, unused: int) -> list[str]:
    """What is wrong with the sizes, if anything: a token without a row, or more than `unused` rows without a token."""
    tokens, rows = tokenizer.size, config.decoder.vocab_size
    return [] if 0 <= rows - tokens <= unused else [f"the tokenizer has {tokens} tokens and the model {rows} rows"]
