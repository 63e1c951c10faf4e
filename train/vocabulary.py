"""Another vocabulary for a trained model: tokenizer, embeddings and head change together, or not at all.

Rows move by token, not by id: what both vocabularies have keeps its numbers wherever it stands. A new token starts as the mean
of the tokens that its text was made of before, so that the model reads it as well on the first day as it did.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from trocr_jax.tokens import Tokenizer, character_vocabulary

from .parameters import Arrays

EMBEDDING, HEAD = "decoder.embed_tokens.embedding", "decoder.head.kernel"
TABLES = {EMBEDDING, HEAD}
NOISE = 0.02  # normal, for new tokens whose text the old vocabulary cannot write either


def extended(tokenizer: Tokenizer, characters: Iterable[str]) -> Tokenizer:
    """The tokenizer with a token for every character that it writes as several, or not at all.

    Byte-level vocabularies get merges behind their own, so that what they could write keeps its tokens; sentencepiece models
    get pieces.

    Raises:
        ValueError: every character is there already, the tokenizer replaces one before it looks for tokens (sentencepiece
            writes a circled a as an a), or it is of a kind that cannot be extended.
    """
    new = [c for c in sorted(set(characters)) if not _is_token(tokenizer, c)]
    if not new:
        raise ValueError("the vocabulary has a token for each of these characters already")
    if "merges.txt" in tokenizer.files and "vocab.json" in tokenizer.files:
        return _with_merges(tokenizer, new)
    if "sentencepiece.bpe.model" in tokenizer.files:
        return _checked(_with_pieces(tokenizer, new), new)
    raise ValueError("a lone tokenizer.json cannot be extended; train with --start.tokenizer and a directory instead")


def _is_token(tokenizer: Tokenizer, character: str) -> bool:
    ids = [i for i in tokenizer.labels(character)[:-1] if tokenizer.decode([i])]
    return len(ids) == 1 and tokenizer.decode(ids) == character


def _with_merges(tokenizer: Tokenizer, characters: list[str]) -> Tokenizer:
    """The merges that make these characters of their bytes are those of a character vocabulary."""
    donor = character_vocabulary(characters).files["merges.txt"].decode().split("\n")[1:]
    merges = tokenizer.files["merges.txt"].decode().rstrip("\n").split("\n")
    merges += [line for line in donor if line and line not in set(merges)]
    vocab = json.loads(tokenizer.files["vocab.json"])
    for line in merges:
        vocab.setdefault(line.replace(" ", ""), len(vocab)) if not line.startswith("#version") else None
    changed = {"vocab.json": json.dumps(vocab, ensure_ascii=False).encode(), "merges.txt": ("\n".join(merges) + "\n").encode()}
    return Tokenizer({**_without_copies(tokenizer), **changed})


def _with_pieces(tokenizer: Tokenizer, characters: list[str]) -> Tokenizer:
    from sentencepiece import sentencepiece_model_pb2

    content = tokenizer.files["sentencepiece.bpe.model"]
    proto = sentencepiece_model_pb2.ModelProto.FromString(content)  # pyright: ignore[reportAttributeAccessIssue]
    lowest = min(piece.score for piece in proto.pieces)
    for character in characters:
        proto.pieces.add(piece=character, score=lowest - 1.0)
    return Tokenizer({**_without_copies(tokenizer), "sentencepiece.bpe.model": proto.SerializeToString()})


def _checked(tokenizer: Tokenizer, characters: list[str]) -> Tokenizer:
    """The tokenizer, if it gives these characters back."""
    if lost := [c for c in characters if tokenizer.decode(tokenizer.labels(f"x{c}y")) != f"x{c}y"]:
        raise ValueError(f"this tokenizer replaces {' '.join(lost)} by other characters before it looks for tokens")
    return tokenizer


def _without_copies(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Its files without tokenizer.json, which is a second copy of the vocabulary that would stay as it was."""
    return {name: content for name, content in tokenizer.files.items() if name != "tokenizer.json"}


def resized(parameters: Arrays, old: Tokenizer, new: Tokenizer, seed: int) -> Arrays:
    """The parameters with embedding [V,D] and, where it is not tied, head [D,V] for the new vocabulary."""
    origins = [_origin(token, index, old, new) for token, index in new.vocabulary.items()]
    places = list(new.vocabulary.values())

    def moved(rows: np.ndarray, stream: int) -> jax.Array:
        out = np.random.default_rng((seed, stream)).normal(0.0, NOISE, (new.size, rows.shape[1])).astype(np.float32)
        for place, origin in zip(places, origins, strict=True):
            if origin:
                out[place] = rows[origin].mean(axis=0)
        return jnp.asarray(out)

    out = {**parameters, EMBEDDING: moved(np.asarray(parameters[EMBEDDING]), 0)}
    return {**out, HEAD: moved(np.asarray(parameters[HEAD]).T, 1).T} if HEAD in parameters else out


def _origin(token: str, index: int, old: Tokenizer, new: Tokenizer) -> list[int]:
    """Ids of the old vocabulary that a token of the new one stands for; none where it could not write it."""
    if token in old.vocabulary:
        return [old.vocabulary[token]]
    return [i for i in old.labels(new.decode([index]))[:-1] if i != old.unk_token_id]
