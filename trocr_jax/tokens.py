"""Text to token ids and back, with the ids and the text of transformers' tokenizers but without importing transformers.

Built on the `tokenizers` library (`tokenizer_files` says from which kinds of files): loading either of TrOCR's tokenizers
takes about 0.2 s, while importing transformers takes 1.2 s, which `trocr-jax read` would pay at every start.

The released models were trained on labels without `<s>` (tokens, then `</s>`) after the decoder start token `</s>`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, processors

from .checkpoints.tokenizer_files import SPECIALS, WORD_START, TokenizerError, dump, open_files, read, reporting
from .files import TOKENIZER_FILES

Span = tuple[int, int]

_NO_ID = 2**32  # the library's ids are unsigned 32-bit numbers
_UNENCODABLE = "the text cannot be encoded: it holds half of a surrogate pair, or the tokenizer is damaged"


class Tokenizer:
    """One tokenizer, made from the contents of its files; safe to share between threads and to pickle.

    files: hub file name -> bytes, kept as they are so that `save` gives back exactly what was read.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        opened = open_files(files)
        self._backend, named = opened.backend, opened.named
        self.bos_token_id = self._required_id(named["bos_token"])
        self.pad_token_id = self._required_id(named["pad_token"])
        self.eos_token_id = self._required_id(named["eos_token"])
        self.unk_token_id = self._backend.token_to_id(named["unk_token"].content)
        if opened.kind is not None:
            ends = [(named["bos_token"].content, self.bos_token_id), (named["eos_token"].content, self.eos_token_id)]
            template = [ends[0][0], "$A", ends[1][0]]
            self._backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
            self._complete_files(opened.kind, opened.config)

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """From a model directory in the hub's layout. Raises TokenizerError."""
        return cls({name: read(Path(path, name)) for name in TOKENIZER_FILES if Path(path, name).is_file()})

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes the hub's files, which transformers' own tokenizer classes load; makes the directory."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            Path(directory, name).write_bytes(content)

    @cached_property
    def size(self) -> int:
        """The largest id + 1. A model may have more rows, which have no text: trocr-small has 64,044 for 64,002."""
        return max(self.vocabulary.values()) + 1

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token as the files write it -> id, added tokens included."""
        return self._backend.get_vocab(with_added_tokens=True)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that never become text."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(index for index, token in added.items() if token.special)

    def encode(self, text: str) -> list[int]:
        """Ids with `<s>` and `</s>` around them, as transformers gives them."""
        with reporting(_UNENCODABLE):
            return self._backend.encode(text).ids

    def labels(self, text: str) -> list[int]:
        """Ids that a TrOCR model is trained to give for a text: its tokens and `</s>`, no `<s>`."""
        with reporting(_UNENCODABLE):
            return [*self._backend.encode(text, add_special_tokens=False).ids, self.eos_token_id]

    def decode(self, ids: Iterable[int]) -> str:
        """Text as transformers gives it with skip_special_tokens and no clean-up; ids without a token are skipped."""
        return self._backend.decode([i for i in map(int, ids) if 0 <= i < _NO_ID], skip_special_tokens=True)

    def spans(self, ids: Iterable[int]) -> list[Span]:
        """(start, end) of every id in `decode(ids)`, in characters; tokens that are parts of one character share it.

        Ids that give no text have empty spans.
        """
        ids = [int(i) for i in ids]
        pieces = self._pieces(ids)
        if pieces is None:
            return self._spans_of_prefixes(ids)
        index = _character_index(b"".join(pieces))
        ends = accumulate(map(len, pieces), initial=0)
        return [(index[start], index[end - 1] + 1 if end > start else index[start]) for start, end in pairwise(ends)]

    def pieces(self, ids: Iterable[int]) -> list[bytes]:
        """What every id adds to the bytes of `decode(ids)`; one token may be part of a character."""
        ids = [int(i) for i in ids]
        pieces, text = self._pieces(ids), self.decode(ids)
        return [text[start:end].encode() for start, end in self._spans_of_prefixes(ids)] if pieces is None else pieces

    @cached_property
    def by_bytes(self) -> dict[bytes, list[int]]:
        """The ids of tokens by what they add to the bytes of a text that has begun.

        Raises TokenizerError for tokenizers of other kinds than TrOCR's, where that depends on the tokens around.
        """
        pieces = self._pieces(list(range(self.size)), begun=True)
        if pieces is None:
            raise TokenizerError("what a token of this tokenizer adds to a text depends on the tokens around it")
        found: dict[bytes, list[int]] = {}
        for index, piece in enumerate(pieces):
            if piece:
                found.setdefault(piece, []).append(index)
        return found

    @property
    def drops_first_space(self) -> bool:
        """Whether texts begin with a token for a space that they do not have, as SentencePiece writes them."""
        decoder = self._backend.decoder
        return isinstance(decoder, decoders.Metaspace) and decoder.prepend_scheme != "never"

    def _pieces(self, ids: list[int], begun: bool = False) -> list[bytes] | None:
        """What each id adds to the bytes of the text, or None where the decoder is of another kind."""
        tokens = [self._backend.id_to_token(i) or "" if self._has_text(i) else "" for i in ids]
        if isinstance(self._backend.decoder, decoders.ByteLevel):
            return [_bytes_of(token) for token in tokens]
        if isinstance(self._backend.decoder, decoders.Metaspace):
            drop = self.drops_first_space and not begun
            first = next((n for n, token in enumerate(tokens) if token), 0) if drop else None
            return [token.replace(WORD_START, "" if n == first else " ").encode() for n, token in enumerate(tokens)]
        return None

    def _has_text(self, index: int) -> bool:
        return 0 <= index < _NO_ID and index not in self.special_ids

    def _spans_of_prefixes(self, ids: Sequence[int]) -> list[Span]:
        text = self.decode(ids)
        agreed = (len(os.path.commonprefix([self.decode(ids[:n]), text])) for n in range(len(ids) + 1))
        return list(pairwise(accumulate(agreed, max)))

    def _required_id(self, token: AddedToken) -> int:
        index = self._backend.token_to_id(token.content)
        if index is None:
            raise TokenizerError(f"the tokenizer has no {token.content!r} token")
        return index

    def _complete_files(self, tokenizer_class: str, config: dict[str, Any]) -> None:
        """A directory without `tokenizer_class` loads here by its files, but not in transformers' Auto classes."""
        if "tokenizer_class" not in config:
            self.files["tokenizer_config.json"] = dump({"tokenizer_class": tokenizer_class, **SPECIALS, **config})
        self.files.setdefault("special_tokens_map.json", dump(SPECIALS))


def character_vocabulary(characters: Iterable[str]) -> Tokenizer:
    """A small RoBERTa-layout tokenizer in which every given non-ASCII character, and every ASCII one, is one token.

    Ids: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, byte b at 4 + b, then the merged UTF-8 bytes of the characters in code
    point order, `<mask>` last. Any other text still round-trips, byte by byte.
    """
    symbols = _byte_symbols()
    merges: dict[tuple[str, str], None] = {}
    for character in sorted(set(characters)):
        if len(character) != 1 or 0xD800 <= ord(character) < 0xE000:
            raise ValueError(f"{character!r} is not a single character")
        left, *others = (symbols[byte] for byte in character.encode())
        for right in others:  # from the first byte on, which no other character's later bytes can be taken for
            merges[left, right] = None
            left += right
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *symbols, *(left + right for left, right in merges), "<mask>"]
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return Tokenizer({"vocab.json": dump(vocabulary), "merges.txt": ("\n".join(lines) + "\n").encode()})


def _byte_symbols() -> list[str]:
    """The visible character that GPT-2's byte-level BPE writes for each byte."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in visible else chr(next(hidden)) for byte in range(256)]


_SYMBOL_BYTES = {symbol: byte for byte, symbol in enumerate(_byte_symbols())}


@lru_cache(1 << 16)
def _bytes_of(token: str) -> bytes:
    if all(symbol in _SYMBOL_BYTES for symbol in token):
        return bytes(_SYMBOL_BYTES[symbol] for symbol in token)
    return token.encode()  # an added token, in plain text


def _character_index(data: bytes) -> list[int]:
    """For every byte, the index of its character in `data.decode(errors="replace")`; at the end, the text's length."""
    if data.isascii():
        return list(range(len(data) + 1))
    index: list[int] = []
    count = start = 0
    while start < len(data):
        try:
            good, bad = data[start:].decode(), 0
        except UnicodeDecodeError as error:
            good, bad = data[start : start + error.start].decode(), error.end - error.start
        for character in good:
            index += [count] * len(character.encode())
            count += 1
        if bad:
            index += [count] * bad
            count += 1
        start = len(index)
    return [*index, count]
