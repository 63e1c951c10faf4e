"""Another vocabulary for a trained model: tokenizer, embeddings and head change together, or not at all.

Rows move by token, not by id: what both vocabularies have keeps its numbers wherever it stands. A new token starts as the mean
of the tokens that its text was made of before, so that the model reads it as well on the first day as it did.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import count, pairwise
from typing import Any
from unicodedata import category

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import models, pre_tokenizers

from trocr_jax import files
from trocr_jax.tokens import Tokenizer

from .parameters import Arrays

EMBEDDING, HEAD = "decoder.embed_tokens.embedding", "decoder.head.kernel"
TABLES = {EMBEDDING, HEAD}
Pair = tuple[str, str]
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
NOISE = 0.02  # normal, for new tokens whose text the old vocabulary cannot write either


def extended(tokenizer: Tokenizer, characters: Iterable[str]) -> Tokenizer:
    """The tokenizer with a token for every character that it writes as several, or not at all.

    Byte-level vocabularies get merges after their own, so that what they could write keeps its tokens; sentencepiece models
    get pieces.

    Raises:
        ValueError: every character is there already, one cannot become a token (sentencepiece writes a circled a as an a),
            or the tokenizer is of a kind that cannot be extended.
    """
    new = [c for c in sorted(set(characters)) if not _is_token(tokenizer, c)]
    if not new:
        raise ValueError("the vocabulary has a token for each of these characters already")
    if _is_byte_level(tokenizer):
        return _with_merges(tokenizer, new)
    if "sentencepiece.bpe.model" in tokenizer.files:
        return _with_pieces(tokenizer, new)
    raise ValueError("a lone tokenizer.json cannot be extended; train with --start.tokenizer and a directory instead")


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    return tokenizer.files.keys() >= set(files.BYTE_LEVEL)


def _is_token(tokenizer: Tokenizer, character: str) -> bool:
    ids = [i for i in tokenizer.labels(character)[:-1] if tokenizer.decode([i])]
    return len(ids) == 1 and tokenizer.decode(ids) == character


def _with_merges(tokenizer: Tokenizer, characters: list[str]) -> Tokenizer:
    """Ids stay: tokens that were added to the vocabulary after vocab.json are written into it before the new ones."""
    merges = _merges(tokenizer, characters)
    tokens = dict(sorted(tokenizer.vocabulary.items(), key=lambda item: item[1]))
    new = dict.fromkeys(left + right for left, right in merges if left + right not in tokens)
    tokens |= zip(new, count(tokenizer.size))
    lines = [*_merge_lines(tokenizer), *(f"{left} {right}" for left, right in merges)]
    merged = "\n".join(["#version: 0.2", *lines, ""]).encode()
    grown = Tokenizer({**_without_copies(tokenizer), "vocab.json": _json(tokens), "merges.txt": merged})
    model = _byte_pairs(grown)
    if lost := [c for c in characters if len(model.tokenize(_symbols(c))) != 1]:
        raise ValueError(f"this tokenizer's own merges keep {' '.join(lost)} from becoming one token")
    return grown


def _merges(tokenizer: Tokenizer, characters: list[str]) -> dict[Pair, int]:
    """Merges, by rank, of what the tokenizer makes of each character now: alone, and after a space that takes its first byte.

    A character of three parts needs a token for two of them, which other characters may have as well: it takes the two
    that fewer have.
    """
    model, others, merges = _byte_pairs(tokenizer), _pairs_of_others(tokenizer, characters), {}
    for character in characters:
        for text in (character, " " + character):
            parts = _merged([token.value for token in model.tokenize(_symbols(text))], merges)
            while not parts[-1].endswith(_symbols(character)):
                merges[min(pairwise(parts), key=lambda pair: others[pair])] = len(merges)
                parts = _merged(parts, merges)
    return merges


def _merged(parts: list[str], merges: dict[Pair, int]) -> list[str]:
    """The parts after the merges, which apply in the order of their ranks."""
    while found := [(merges[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in merges]:
        place = min(found)[1]
        parts = [*parts[:place], parts[place] + parts[place + 1], *parts[place + 2 :]]
    return parts


def _pairs_of_others(tokenizer: Tokenizer, characters: list[str]) -> Counter[Pair]:
    """How many other characters below U+10000, where nearly everything that is written lies, hold each pair of tokens."""
    model, counts = _byte_pairs(tokenizer), Counter()
    for character in {c for c in map(chr, range(0x10000)) if category(c) not in ("Cn", "Co", "Cs")} - set(characters):
        for text in (character, " " + character):
            counts.update(pairwise(token.value for token in model.tokenize(_symbols(text))))
    return counts


def _byte_pairs(tokenizer: Tokenizer) -> models.BPE:
    """A byte-level tokenizer's model, which takes the symbols of any bytes."""
    pairs = [(left, right) for left, right in (line.split(" ") for line in _merge_lines(tokenizer))]
    return models.BPE(vocab=json.loads(tokenizer.files["vocab.json"]), merges=pairs)


def _merge_lines(tokenizer: Tokenizer) -> list[str]:
    lines = [line.rstrip("\r") for line in tokenizer.files["merges.txt"].decode().split("\n")]
    return [line for line in lines if line.strip() and not line.startswith("#version")]


def _symbols(text: str) -> str:
    """A byte-level tokenizer's visible character for each byte of the text."""
    return _BYTES.pre_tokenize_str(text)[0][0]


def _with_pieces(tokenizer: Tokenizer, characters: list[str]) -> Tokenizer:
    from sentencepiece import sentencepiece_model_pb2

    content = tokenizer.files["sentencepiece.bpe.model"]
    proto = sentencepiece_model_pb2.ModelProto.FromString(content)  # pyright: ignore[reportAttributeAccessIssue]
    end, lowest = len(proto.pieces) + 1, min(piece.score for piece in proto.pieces)  # id = piece + 1
    for character in characters:
        proto.pieces.add(piece=character, score=lowest - 1.0)
    moved = _moved_ids(tokenizer, end, len(characters))
    grown = Tokenizer({**_without_copies(tokenizer), **moved, "sentencepiece.bpe.model": proto.SerializeToString()})
    if lost := [c for c in characters if not _is_token(grown, c) or grown.decode(grown.labels(f"x{c}y")) != f"x{c}y"]:
        raise ValueError(f"this tokenizer replaces {' '.join(lost)} by other characters before it looks for tokens")
    return grown


def _moved_ids(tokenizer: Tokenizer, start: int, by: int) -> dict[str, bytes]:
    """The files that pin the ids of added tokens, as transformers saves them, with those from `start` on moved."""
    config = json.loads(tokenizer.files.get("tokenizer_config.json", b"{}"))
    pinned = config.get("added_tokens_decoder", {})
    moved = {str(int(index) + by * (int(index) >= start)): token for index, token in pinned.items()}
    found = {"tokenizer_config.json": _json({**config, "added_tokens_decoder": moved})} if moved else {}
    older = json.loads(tokenizer.files.get("added_tokens.json", b"{}"))
    if not pinned and not older:  # tokenizer.json alone has them, and will be left out
        older = {x["content"]: x["id"] for x in json.loads(tokenizer.files.get("tokenizer.json", b"{}")).get("added_tokens", [])}
    if older:
        found["added_tokens.json"] = _json({token: index + by * (index >= start) for token, index in older.items()})
    return found


def _without_copies(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Its files without tokenizer.json, which is a second copy of the vocabulary that would stay as it was."""
    return {name: content for name, content in tokenizer.files.items() if name != "tokenizer.json"}


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


def resized(parameters: Arrays, old: Tokenizer, new: Tokenizer, seed: int) -> Arrays:
    """The parameters with embedding [V,D] and, where it is not tied, head [D,V] for the new vocabulary."""
    parts = _byte_pairs(old) if _is_byte_level(old) and _is_byte_level(new) else None
    origins = [_origin(token, index, old, new, parts) for token, index in new.vocabulary.items()]
    places = list(new.vocabulary.values())

    def moved(rows: np.ndarray, stream: int) -> jax.Array:
        out = np.random.default_rng((seed, stream)).normal(0.0, NOISE, (new.size, rows.shape[1])).astype(np.float32)
        for place, origin in zip(places, origins, strict=True):
            if origin:
                out[place] = rows[origin].mean(axis=0)
        return jnp.asarray(out)

    out = {**parameters, EMBEDDING: moved(np.asarray(parameters[EMBEDDING]), 0)}
    return {**out, HEAD: moved(np.asarray(parameters[HEAD]).T, 1).T} if HEAD in parameters else out


def _origin(token: str, index: int, old: Tokenizer, new: Tokenizer, parts: models.BPE | None) -> list[int]:
    """Ids of the old vocabulary that a token of the new one stands for; none where it could not write it.

    Args:
        parts: the old model where both are byte-level: a token may then be a part of a character, which is no text.
    """
    if token in old.vocabulary:
        return [old.vocabulary[token]]
    if parts is not None:
        return [part.id for part in parts.tokenize(token)]
    return [i for i in old.labels(new.decode([index]))[:-1] if i != old.unk_token_id]
