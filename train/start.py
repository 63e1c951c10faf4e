"""The model that training starts from: a checkpoint, perhaps with larger images or another vocabulary, or random numbers.

Letters: D width, S image tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from trocr_jax import files, pretrained
from trocr_jax.checkpoints import generation_files, weights
from trocr_jax.config import PRESETS, DecoderConfig, EncoderConfig, Size, TrOCRConfig
from trocr_jax.model import TrOCR
from trocr_jax.network.encoder import interpolate_grid
from trocr_jax.pixels.image_processor import ImageProcessor
from trocr_jax.tokens import Tokenizer, character_vocabulary

from . import vocabulary
from .config import StartConfig
from .drawing.texts import CHARACTERS
from .parameters import Arrays, named

_WIDTH = 256
ARCHITECTURES: dict[str, TrOCRConfig] = {
    "tiny-print": TrOCRConfig(
        EncoderConfig(
            "vit", (32, 512), (32, 8), hidden_size=_WIDTH, num_layers=4, num_heads=4, mlp_size=4 * _WIDTH, activation="relu",
            qkv_bias=True, layer_norm_eps=1e-6,
        ),
        DecoderConfig(
            vocab_size=512, hidden_size=_WIDTH, num_layers=2, num_heads=4, mlp_size=4 * _WIDTH, activation="relu",
            max_positions=64, cross_attention_size=_WIDTH, dropout=0.0,
        ),
    ),
    **PRESETS,
}  # fmt: skip
"""Models that can be trained from scratch, by name; their vocabulary is the characters of `texts`."""
POSITIONS = "encoder.position_embedding"
_TOKEN_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids")
"""Settings of generation_config.json that hold token ids, beside those whose names end with _token_id."""


@dataclass(frozen=True)
class Start:
    """A model in float32 with what makes it a complete directory: tokenizer, preprocessing, and the files of both."""

    config: TrOCRConfig
    parameters: Arrays
    tokenizer: Tokenizer
    processor: ImageProcessor
    companions: dict[str, bytes]


def start(config: StartConfig, seed: int) -> Start:
    """The model on the default device.

    Raises:
        ValueError: no such checkpoint or architecture, or a size or tokenizer that does not fit it.
    """
    found = _scratch(config, seed) if config.model == "scratch" else opened(None if config.model == "package" else config.model)
    if config.fit:
        found = with_processor(found, replace(found.processor, fit=config.fit))
    if config.image_size:
        found = with_image_size(found, config.image_size, config.positions)
    if config.tokenizer:
        found = with_tokenizer(found, Tokenizer.from_directory(files.resolve(config.tokenizer)), seed)
    if config.extend_vocab:
        found = with_tokenizer(found, vocabulary.extended(found.tokenizer, _characters(config.extend_vocab)), seed)
    return found if config.dropout is None else replace(found, config=_with_dropout(found.config, config.dropout))


def trimming(found: Start, trimmed: bool) -> Start:
    """The model with a processor that says whether training leaves out empty columns."""
    if found.processor.trimmed == trimmed:
        return found
    return with_processor(found, replace(found.processor, trimmed=trimmed))


def opened(name: str | Path | None, numbers: bool = True) -> Start:
    """A complete model directory, by name; without its numbers, shapes in their place (a run that goes on has its own)."""
    directory = files.resolve(name)
    if directory.is_file():
        raise ValueError(f"{directory}: convert it to a model directory first, with trocr-jax convert")
    checkpoint = pretrained.open_checkpoint(directory)
    abstract = TrOCR.abstract(checkpoint.config)
    model = weights.load(abstract, checkpoint.tensors) if numbers else abstract
    processor = ImageProcessor.from_hf(files.read_preprocessor(directory), checkpoint.config.encoder.image_size)
    tokenizer = Tokenizer.from_directory(directory)
    return Start(checkpoint.config, named(model), tokenizer, processor, pretrained.companions(directory))


def _scratch(config: StartConfig, seed: int) -> Start:
    if config.architecture not in ARCHITECTURES:
        raise ValueError(f"no architecture {config.architecture!r}; known: {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[config.architecture]
    size = _pair(config.image_size or architecture.encoder.image_size)
    tokenizer = character_vocabulary(CHARACTERS)
    processor = ImageProcessor(height=size[0], width=size[1], fit="line")
    architecture = replace(
        architecture,
        encoder=replace(architecture.encoder, image_size=size),
        decoder=replace(architecture.decoder, vocab_size=tokenizer.size),
    )
    companions = {**tokenizer.files, "preprocessor_config.json": _json(processor.to_hf())}
    return Start(architecture, random_parameters(architecture, seed), tokenizer, processor, companions)


def random_parameters(config: TrOCRConfig, seed: int) -> Arrays:
    """Random parameters for a model to train from scratch.

    The library initialises as the checkpoints were, normal(0.02), which suits a width of 768. Narrow models learn much faster
    with kernels of normal(1 / sqrt(fan-in)), and with image positions that start as sinusoids: neighbouring columns are alike
    from the first step, and the table can be continued for wider images.
    """
    parameters = named(jax.jit(lambda: TrOCR(config, rngs=nnx.Rngs(seed)))())
    for name, key in zip(parameters, jax.random.split(jax.random.key(seed), len(parameters)), strict=True):
        shape = parameters[name].shape
        if name.endswith("kernel"):
            parameters[name] = jax.random.normal(key, shape) * shape[-2] ** -0.5
        if name == "decoder.embed_tokens.embedding":
            parameters[name] = jax.random.normal(key, shape) * shape[-1] ** -0.5
    return {**parameters, POSITIONS: jnp.asarray(sinusoids(config.encoder))}


def sinusoids(config: EncoderConfig) -> np.ndarray:
    """Image positions [S,D]: sine and cosine of the column, and of the row where there are several; special tokens 0."""
    rows, columns = config.grid
    sizes = [config.hidden_size // 2] * 2 if rows > 1 else [0, config.hidden_size]
    places = np.indices((rows, columns)).reshape(2, -1)
    table = np.concatenate([_waves(place, size) for place, size in zip(places, sizes, strict=True)], axis=1)
    return np.concatenate([np.zeros((config.num_special_tokens, config.hidden_size)), table]).astype(np.float32)


def _waves(place: np.ndarray, size: int) -> np.ndarray:
    """[n] -> [n, size], wavelengths from 2 pi to 10000 times that in a geometric row (Vaswani et al., 2017)."""
    phase = place[:, None] * 10000.0 ** -(np.arange(size // 2) / max(size // 2, 1))
    return np.concatenate([np.sin(phase), np.cos(phase)], axis=1)


def with_image_size(found: Start, size: Iterable[int], positions: str) -> Start:
    """The same model for images of another size (height, width).

    Raises:
        ValueError: the size is no multiple of the patch.
    """
    old = found.config.encoder
    new = replace(old, image_size=_pair(size))
    if new == old:
        return found
    table, special = found.parameters[POSITIONS], old.num_special_tokens
    if positions == "continue":
        patches = continue_grid(table[special:], sinusoids(new)[special:], old.grid, new.grid)
    else:
        patches = interpolate_grid(table[special:], old.grid, new.grid)
    found = with_processor(found, replace(found.processor, height=new.image_size[0], width=new.image_size[1]))
    parameters = {**found.parameters, POSITIONS: jnp.concatenate([table[:special], patches])}
    return replace(found, config=replace(found.config, encoder=new), parameters=parameters)


def with_processor(found: Start, processor: ImageProcessor) -> Start:
    """The same model with other preprocessing, and the files that say so: transformers 5 prefers processor_config.json."""
    companions = {**found.companions, "preprocessor_config.json": _json(processor.to_hf())}
    if combined := _parsed(found, "processor_config.json"):
        companions["processor_config.json"] = _json({**combined, "image_processor": processor.to_hf()})
    return replace(found, processor=processor, companions=companions)


def continue_grid(table: jax.Array, sinusoidal: np.ndarray, old: Size, new: Size) -> jax.Array:
    """Trained rows and columns where the old grid had them, sinusoids elsewhere: [old patches, D] -> [new patches, D]."""
    rows, columns = min(old[0], new[0]), min(old[1], new[1])
    grid = jnp.asarray(sinusoidal).reshape(*new, -1)
    return grid.at[:rows, :columns].set(table.reshape(*old, -1)[:rows, :columns]).reshape(new[0] * new[1], -1)


def with_tokenizer(found: Start, tokenizer: Tokenizer, seed: int) -> Start:
    """The same model with another tokenizer: embeddings and head get its rows, config and files its ids, all at once.

    Raises:
        ValueError: its own has more tokens than it has rows.
    """
    if found.tokenizer.size > (rows := found.config.decoder.vocab_size):
        raise ValueError(
            f"the start model has {rows} rows, its own tokenizer has {found.tokenizer.size} tokens: they do not belong together"
        )
    places = _places(found.tokenizer, tokenizer)
    config = replace(
        found.config,
        decoder=replace(found.config.decoder, vocab_size=tokenizer.size),
        # where that token is gone, as every public checkpoint: a line begins after the end of one
        decoder_start_token_id=places.get(found.config.decoder_start_token_id, tokenizer.eos_token_id),
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    parameters = vocabulary.resized(found.parameters, found.tokenizer, tokenizer, seed)
    kept = {name: content for name, content in found.companions.items() if name not in files.TOKENIZER_FILES}
    if settings := _parsed(found, generation_files.NAME):
        kept[generation_files.NAME] = _json(_renumbered(settings, places))
    return replace(found, config=config, parameters=parameters, tokenizer=tokenizer, companions={**kept, **tokenizer.files})


def _places(old: Tokenizer, new: Tokenizer) -> dict[int, int]:
    """Old id -> new id, of the same token or the same role."""
    same = {index: new.vocabulary[token] for token, index in old.vocabulary.items() if token in new.vocabulary}
    roles = ("bos_token_id", "pad_token_id", "eos_token_id")
    return same | {getattr(old, role): getattr(new, role) for role in roles}


def _renumbered(settings: dict[str, Any], places: dict[int, int]) -> dict[str, Any]:
    """A generation_config.json's settings with the ids that its tokens have now, without those of tokens that are gone."""
    renumbered = {}
    for name, value in settings.items():
        try:
            renumbered[name] = _moved(value, places) if name.endswith("_token_id") or name in _TOKEN_LISTS else value
        except KeyError:
            continue
    return renumbered


def _moved(value: Any, places: dict[int, int]) -> Any:
    """Ids, in lists of any depth, at their new places; None stays. Raises KeyError for a token that has none."""
    if isinstance(value, list):
        return [_moved(item, places) for item in value]
    return None if value is None else places[value]


def _characters(text: str) -> str:
    try:
        path = Path(text).expanduser()
        return "".join(path.read_text(encoding="utf-8-sig").split()) if path.is_file() else text
    except UnicodeDecodeError:
        raise ValueError(f"--start.extend-vocab {text}: not a text in UTF-8") from None
    except (OSError, RuntimeError):  # a text too long to be a name, or one that begins with ~
        return text


def _with_dropout(config: TrOCRConfig, rate: float) -> TrOCRConfig:
    return replace(config, encoder=replace(config.encoder, dropout=rate), decoder=replace(config.decoder, dropout=rate))


def _pair(size: Iterable[int]) -> Size:
    height, width = size
    return int(height), int(width)


def _parsed(found: Start, name: str) -> dict[str, Any]:
    """A companion's json, empty where there is none."""
    try:
        return dict(json.loads(found.companions.get(name, b"{}")))
    except (TypeError, ValueError):
        raise ValueError(f"{name} is not valid json") from None


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
