"""What the files of a tokenizer say, as a backend of the `tokenizers` library.

Three kinds of directory, told apart by their files and by `tokenizer_class`, never guessed:
* vocab.json + merges.txt, RoBERTa's byte-level BPE (base, large): any text round-trips, a character may be many tokens;
* sentencepiece.bpe.model in XLM-R's layout (small): id = piece + 1, NFKC, single spaces, rare characters are lost;
* a lone tokenizer.json, as transformers 5 saves: whatever it says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from ..files import BYTE_LEVEL, SENTENCEPIECE, TOKENIZER_JSON

_LAYOUTS = {  # files that make a tokenizer -> the classes that read them so
    BYTE_LEVEL: ("RobertaTokenizer", "RobertaTokenizerFast"),
    SENTENCEPIECE: ("XLMRobertaTokenizer", "XLMRobertaTokenizerFast"),
}
_MAX_BYTES = 64 * 2**20
SPECIALS = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
WORD_START = "\u2581"


class TokenizerError(ValueError):
    """Tokenizer files that are missing, damaged or of an unsupported kind; the message says which."""


@dataclass(frozen=True)
class Opened:
    """A tokenizer as its files describe it.

    Attributes:
        backend: without a post-processor where it has a `kind`.
        named: the special tokens by role.
        config: the content of tokenizer_config.json.
        kind: the class of transformers that reads these files so; None for a lone tokenizer.json.
    """

    backend: tokenizers.Tokenizer
    named: dict[str, AddedToken]
    config: dict[str, Any]
    kind: str | None


def open_files(files: Mapping[str, bytes]) -> Opened:
    """Opens a tokenizer, given its files' names and contents. Raises TokenizerError."""
    config = _json(files, "tokenizer_config.json")
    layout = _layout(files, config.get("tokenizer_class"))
    with reporting(f"the tokenizer ({' + '.join(layout)}) or its configuration is damaged"):
        named = _named_tokens(files, config)
        backend = _backend(files, layout, config)
        _add_tokens(backend, named, files, config)
    return Opened(backend, named, config, _LAYOUTS[layout][0] if layout in _LAYOUTS else None)


def read(path: Path) -> bytes:
    with reporting(f"{path.name} cannot be read"), path.open("rb") as stream:
        content = stream.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise TokenizerError(f"{path.name} is larger than any tokenizer's file")
    return content


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    with reporting(f"{name} is no JSON object"):
        content = json.loads(files.get(name, b"{}"))
    if not isinstance(content, dict):
        raise TokenizerError(f"{name} is no JSON object")
    return content


def dump(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


@contextmanager
def reporting(message: str) -> Iterator[None]:
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
    metaspace = pre_tokenizers.Metaspace(WORD_START, prepend_scheme=scheme)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    backend.decoder = decoders.Metaspace(WORD_START, prepend_scheme=scheme)
    return backend


def _named_tokens(files: Mapping[str, bytes], config: dict[str, Any]) -> dict[str, AddedToken]:
    """The special tokens by role. special_tokens_map.json counts only in directories without `added_tokens_decoder`."""
    older = {} if "added_tokens_decoder" in config else _json(files, "special_tokens_map.json")
    declared = {entry["content"]: entry for entry in config.get("added_tokens_decoder", {}).values()}
    named = {}
    for key, default in SPECIALS.items():
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
    """Adds what a fine-tuner added to the vocabulary, at the ids it has there, then the special tokens.

    transformers 5 writes the first into tokenizer.json alone, beside the files of the vocabulary as it was.
    """
    additional = [_added_token(entry, special=True) for entry in _additional(files, config)]
    specials = {token.content for token in (*named.values(), *additional)}
    there = {token.content for token in backend.get_added_tokens_decoder().values()}  # a tokenizer.json holds its own
    declared = {int(index): entry for index, entry in config.get("added_tokens_decoder", {}).items()}
    declared = declared or {index: token for token, index in _json(files, "added_tokens.json").items()}
    declared = declared or {token["id"]: token for token in _json(files, TOKENIZER_JSON[0]).get("added_tokens", [])}
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
