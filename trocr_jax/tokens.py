"""Text to token ids and back, with the ids and the text of transformers' tokenizers but without importing transformers.

Stands on the `tokenizers` library, and on sentencepiece's file format for the small models: loading either of TrOCR's
tokenizers takes about 0.2 s, while importing transformers takes 1.2 s, which `trocr-jax read` would pay at every start.

Three kinds of directory, told apart by their files and by `tokenizer_class`, never guessed:
* vocab.json + merges.txt, RoBERTa's byte-level BPE (base, large): any text round-trips, a character may be many tokens;
* sentencepiece.bpe.model in XLM-R's layout (small): id = piece + 1, NFKC, single spaces, rare characters are lost;
* a lone tokenizer.json, as transformers 5 saves: whatever it says.

The released models were trained on labels without `<s>` (tokens, then `</s>`) behind the decoder start token `</s>`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from .files import BYTE_LEVEL, SENTENCEPIECE, TOKENIZER_FILES, TOKENIZER_JSON

Span = tuple[int, int]

_LAYOUTS = {  # files that make a tokenizer -> the classes that read them so
    BYTE_LEVEL: ("RobertaTokenizer", "RobertaTokenizerFast"),
    SENTENCEPIECE: ("XLMRobertaTokenizer", "XLMRobertaTokenizerFast"),
}
_MAX_BYTES = 64 * 2**20
_NO_ID = 2**32  # the library's ids are unsigned 32-bit numbers
_SPECIALS = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
_WORD_START = "\u2581"
_UNENCODABLE = "the text cannot be encoded: it holds half of a surrogate pair, or the tokenizer is damaged"


class TokenizerError(ValueError):
    """Tokenizer files that are missing, damaged or of an unsupported kind; the message says which."""


class Tokenizer:
    """One tokenizer, made from the contents of its files; safe to share between threads and to pickle.

    files: hub file name -> bytes, kept as they are so that `save` gives back exactly what was read.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        config = _json(files, "tokenizer_config.json")
        layout = _layout(files, config.get("tokenizer_class"))
        with _reporting(f"the tokenizer ({' + '.join(layout)}) or its configuration is damaged"):
            named = _named_tokens(files, config)
            self._backend = _backend(files, layout, config)
            _add_tokens(self._backend, named, files, config)
        self.bos_token_id = self._required_id(named["bos_token"])
        self.pad_token_id = self._required_id(named["pad_token"])
        self.eos_token_id = self._required_id(named["eos_token"])
        self.unk_token_id = self._backend.token_to_id(named["unk_token"].content)
        if layout in _LAYOUTS:
            ends = [(named["bos_token"].content, self.bos_token_id), (named["eos_token"].content, self.eos_token_id)]
            template = [ends[0][0], "$A", ends[1][0]]
            self._backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
            self._complete_files(_LAYOUTS[layout][0], config)

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """From a model directory in the hub's layout. Raises TokenizerError."""
        return cls({name: _read(Path(path, name)) for name in TOKENIZER_FILES if Path(path, name).is_file()})

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
        with _reporting(_UNENCODABLE):
            return self._backend.encode(text).ids

    def labels(self, text: str) -> list[int]:
        """Ids that a TrOCR model is trained to give for a text: its tokens and `</s>`, no `<s>`."""
        with _reporting(_UNENCODABLE):
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

    def _pieces(self, ids: list[int]) -> list[bytes] | None:
        """What each id adds to the bytes of the text, or None where the decoder is of another kind."""
        tokens = [self._backend.id_to_token(i) or "" if self._has_text(i) else "" for i in ids]
        if isinstance(self._backend.decoder, decoders.ByteLevel):
            return [_bytes_of(token) for token in tokens]
        if isinstance(self._backend.decoder, decoders.Metaspace):
            first = next((n for n, token in enumerate(tokens) if token), 0)
            drop = self._backend.decoder.prepend_scheme != "never"
            return [token.replace(_WORD_START, "" if drop and n == first else " ").encode() for n, token in enumerate(tokens)]
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
            self.files["tokenizer_config.json"] = _dump({"tokenizer_class": tokenizer_class, **_SPECIALS, **config})
        self.files.setdefault("special_tokens_map.json", _dump(_SPECIALS))


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
    return Tokenizer({"vocab.json": _dump(vocabulary), "merges.txt": ("\n".join(lines) + "\n").encode()})


def _read(path: Path) -> bytes:
    with _reporting(f"{path.name} cannot be read"), path.open("rb") as stream:
        content = stream.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise TokenizerError(f"{path.name} is larger than any tokenizer's file")
    return content


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    with _reporting(f"{name} is no JSON object"):
        content = json.loads(files.get(name, b"{}"))
    if not isinstance(content, dict):
        raise TokenizerError(f"{name} is no JSON object")
    return content


def _dump(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


@contextmanager
def _reporting(message: str) -> Iterator[None]:
    """Turns whatever a library raises inside into a TokenizerError, also a Rust panic, which is no Exception."""
    try:
        yield
    except TokenizerError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TokenizerError(message) from None
        raise


def _layout(files: Mapping[str, bytes], tokenizer_class: str | None) -> tuple[str, ...]:
    for layout, classes in _LAYOUTS.items():
        if all(name in files for name in layout) and tokenizer_class in (None, *classes):
            return layout
    if TOKENIZER_JSON[0] in files:
        return TOKENIZER_JSON
    wanted = "vocab.json + merges.txt, sentencepiece.bpe.model or tokenizer.json"
    if any(name in files for layout in _LAYOUTS for name in layout) and tokenizer_class:
        raise TokenizerError(f"tokenizer_class {tokenizer_class!r} is not supported with these files; needs {wanted}")
    raise TokenizerError(f"no tokenizer found: needs {wanted}")


def _backend(files: Mapping[str, bytes], layout: tuple[str, ...], config: dict[str, Any]) -> tokenizers.Tokenizer:
    if layout == TOKENIZER_JSON:
        backend = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
        backend.no_padding()
        backend.no_truncation()
        return backend
    if layout == BYTE_LEVEL:
        return _byte_level(files, bool(config.get("add_prefix_space", False)))
    return _unigram(files["sentencepiece.bpe.model"], bool(config.get("add_prefix_space", True)))


def _byte_level(files: Mapping[str, bytes], add_prefix_space: bool) -> tokenizers.Tokenizer:
    lines = files["merges.txt"].decode().split("\n")  # not splitlines(): a token may be a line separator
    pairs = [_pair(line.rstrip("\r")) for line in lines if line.strip() and not line.startswith("#version")]
    backend = tokenizers.Tokenizer(models.BPE(vocab=_json(files, "vocab.json"), merges=pairs, fuse_unk=False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    return backend


def _pair(line: str) -> tuple[str, str]:
    left, right = line.split(" ")
    return left, right


def _unigram(model: bytes, add_prefix_space: bool) -> tokenizers.Tokenizer:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # pyright: ignore[reportAttributeAccessIssue]
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    if proto.trainer_spec.model_type != 1 or [piece for piece, _ in pieces[:3]] != ["<unk>", "<s>", "</s>"]:
        raise TokenizerError("sentencepiece.bpe.model is no unigram model in XLM-RoBERTa's layout")
    specials = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    backend = tokenizers.Tokenizer(models.Unigram([*specials, *pieces[3:], ("<mask>", 0.0)], 3, False))
    if proto.normalizer_spec.precompiled_charsmap:
        backend.normalizer = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    scheme = "always" if add_prefix_space else "never"
    metaspace = pre_tokenizers.Metaspace(_WORD_START, prepend_scheme=scheme)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    backend.decoder = decoders.Metaspace(_WORD_START, prepend_scheme=scheme)
    return backend


def _named_tokens(files: Mapping[str, bytes], config: dict[str, Any]) -> dict[str, AddedToken]:
    """The special tokens by role. special_tokens_map.json counts only in directories without `added_tokens_decoder`."""
    older = {} if "added_tokens_decoder" in config else _json(files, "special_tokens_map.json")
    declared = {entry["content"]: entry for entry in config.get("added_tokens_decoder", {}).values()}
    named = {}
    for key, default in _SPECIALS.items():
        value = older.get(key) or config.get(key) or default
        named[key] = _added_token(declared.get(value, value) if isinstance(value, str) else value, special=True)
    return named


def _added_token(value: str | dict[str, Any], special: bool) -> AddedToken:
    fields: dict[str, Any] = {"content": value, "normalized": not special} if isinstance(value, str) else value
    flags = {name: bool(fields.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return AddedToken(fields["content"], special=special or bool(fields.get("special", False)), **flags)


def _add_tokens(
    backend: tokenizers.Tokenizer, named: dict[str, AddedToken], files: Mapping[str, bytes], config: dict[str, Any]
) -> None:
    """Adds what a fine-tuner added to the vocabulary, at the ids it has there, then the special tokens."""
    additional = [_added_token(entry, special=True) for entry in _additional(files, config)]
    specials = {token.content for token in (*named.values(), *additional)}
    there = {token.content for token in backend.get_added_tokens_decoder().values()}  # a tokenizer.json holds its own
    declared = {int(index): entry for index, entry in config.get("added_tokens_decoder", {}).items()}
    declared = declared or {index: token for token, index in _json(files, "added_tokens.json").items()}
    for index, entry in sorted(declared.items()):
        content = entry if isinstance(entry, str) else entry["content"]
        if content not in there:
            backend.add_tokens([_added_token(entry, special=content in specials)])
        if backend.token_to_id(content) != index:
            raise TokenizerError(f"added token {content!r} cannot have the id {index} in this vocabulary")
    known = [token for token in named.values() if backend.token_to_id(token.content) is not None]
    backend.add_tokens([token for token in (*known, *additional) if token.content not in there])


def _additional(files: Mapping[str, bytes], config: dict[str, Any]) -> list[Any]:
    sources = (config, _json(files, "special_tokens_map.json"))
    found = [source.get(key) for source in sources for key in ("additional_special_tokens", "extra_special_tokens")]
    return [entry for entries in found if isinstance(entries, list) for entry in entries]


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
