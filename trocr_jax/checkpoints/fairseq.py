"""Checkpoints of the original TrOCR code (fairseq, microsoft/unilm): their names and what config they imply.

Such a file holds no `config.json`. Its arguments do not describe it either: the `roberta2` decoders were built from
RoBERTa's own arguments, which were not stored. The tensors tell the family; arguments fill in what tensors cannot show.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import ConfigError, DecoderConfig, EncoderConfig, TrOCRConfig
from .tensor_files import ArrayLike, Tensors
from .torch_files import Inert

_PREFIX = "encoder.deit."
_BLOCK = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
}  # fmt: skip
_EMBEDDINGS = {
    "cls_token": "cls_token", "dist_token": "distillation_token", "pos_embed": "position_embeddings",
    "patch_embed.proj.weight": "patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "patch_embeddings.projection.bias",
}  # fmt: skip
_IMAGENET_HEADS = re.compile(r"encoder\.deit\.head(_dist)?\.(weight|bias)")


@dataclass(frozen=True)
class Rows:
    """Rows start:stop of a tensor that is read only when it is used."""

    source: ArrayLike
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.source.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.source.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(np.asarray(self.source)[self.start : self.stop], dtype, copy=copy)


def is_fairseq(tensors: Tensors) -> bool:
    return any(name.startswith(_PREFIX) for name in tensors)


def to_hub(tensors: Tensors) -> dict[str, ArrayLike]:
    """The same tensors under the hub's names: the fused query, key and value in three, the ImageNet heads dropped."""
    out: dict[str, ArrayLike] = {}
    for name, tensor in tensors.items():
        if not _IMAGENET_HEADS.fullmatch(name):
            out |= _renamed(name, tensor)
    return out


def _renamed(name: str, tensor: ArrayLike) -> dict[str, ArrayLike]:
    if name.startswith("decoder.") and not name.startswith("decoder.output_projection."):
        return {f"decoder.model.{name}": tensor}
    local = name.removeprefix(_PREFIX)
    if local in _EMBEDDINGS:
        return {f"encoder.embeddings.{_EMBEDDINGS[local]}": tensor}
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", local)
    if block is None:
        return {name.replace(f"{_PREFIX}norm.", "encoder.layernorm."): tensor}
    layer, module, kind = f"encoder.encoder.layer.{block[1]}", block[2], block[3]
    if module == "attn.qkv" and tensor.shape and tensor.shape[0] % 3 == 0:  # else left, and reported with its name
        size = tensor.shape[0] // 3
        names = [f"{layer}.attention.attention.{part}.{kind}" for part in ("query", "key", "value")]
        return {part: Rows(tensor, i * size, (i + 1) * size) for i, part in enumerate(names)}
    return {f"{layer}.{_BLOCK[module]}.{kind}" if module in _BLOCK else name: tensor}


def arguments(content: Mapping[str, Any]) -> dict[str, Any]:
    """The model's arguments in a checkpoint: `cfg.model` or `args`; a dict, an argparse or an omegaconf object."""
    config = _attributes(content.get("cfg"))
    return _attributes(config.get("model")) or _attributes(content.get("args"))


def _attributes(record: Any) -> dict[str, Any]:
    """An object's attributes, unwrapped no deeper than needed: a file may hold objects within themselves, or one many times."""
    state = _state(record)
    content = state.get("_content")  # omegaconf wraps its values in nodes
    if not isinstance(content, dict):
        return state
    return {key: _state(node).get("_val", node) for key, node in content.items()}


def _state(record: Any) -> dict[str, Any]:
    state = record.state if isinstance(record, Inert) else record
    return state if isinstance(state, dict) else {}


def infer_config(tensors: Tensors, args: Mapping[str, Any]) -> TrOCRConfig:
    """The config that a fairseq checkpoint implies.

    The encoder's LayerNorm eps is the hub's 1e-12, not timm's 1e-6, so that a checkpoint and its twin on the hub agree.
    Heads of sizes that were never released are a guess; pass a config of your own for those.

    Raises:
        ConfigError: not a TrOCR, or a variant that was never released.
    """
    try:
        return TrOCRConfig(_encoder(tensors, args), _decoder(tensors, args))
    except ConfigError:
        raise
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigError("not a TrOCR checkpoint of fairseq: tensors that give its sizes are missing") from error


def _layers(tensors: Tensors, pattern: str) -> int:
    found = [int(match[1]) for name in tensors if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


def _encoder(tensors: Tensors, args: Mapping[str, Any]) -> EncoderConfig:
    size = tensors[f"{_PREFIX}cls_token"].shape[2]
    channels, *patch = tensors[f"{_PREFIX}patch_embed.proj.weight"].shape[1:]
    deit = f"{_PREFIX}dist_token" in tensors
    grid = math.isqrt(patches := tensors[f"{_PREFIX}pos_embed"].shape[1] - (2 if deit else 1))
    if args.get("ape") or grid * grid != patches:
        raise ConfigError("fairseq encoders with adaptive positions (--ape) or oblong images are not supported")
    return EncoderConfig(
        model_type="deit" if deit else "vit", image_size=(grid * patch[0], grid * patch[1]),
        patch_size=(patch[0], patch[1]), num_channels=channels, hidden_size=size,
        num_layers=_layers(tensors, r"encoder\.deit\.blocks\.(\d+)\."), num_heads=max(1, size // 64),
        mlp_size=tensors[f"{_PREFIX}blocks.0.mlp.fc1.weight"].shape[0],
        qkv_bias=f"{_PREFIX}blocks.0.attn.qkv.bias" in tensors,
    )  # fmt: skip


def _decoder(tensors: Tensors, args: Mapping[str, Any]) -> DecoderConfig:
    vocab, size = tensors["decoder.embed_tokens.weight"].shape
    positions = tensors.get("decoder.embed_positions.weight")
    layernorm, tied = "decoder.layernorm_embedding.weight" in tensors, _is_tied(tensors)
    # built from RoBERTa's arguments, which the file does not hold: gelu, no scaling, heads of 64
    roberta = positions is not None and layernorm and tied
    heads = 0 if roberta and size % 64 == 0 else _number(args, "decoder_attention_heads") or (8 if size == 256 else 0)
    length = positions.shape[0] - 2 if positions is not None else _number(args, "max_target_positions") or 1024
    activation = args.get("activation_fn")
    return DecoderConfig(
        vocab_size=vocab, hidden_size=size, num_layers=_layers(tensors, r"decoder\.layers\.(\d+)\."),
        num_heads=heads or max(1, size // 64), mlp_size=tensors["decoder.layers.0.fc1.weight"].shape[0],
        activation="gelu" if roberta else activation if isinstance(activation, str) else "relu", max_positions=length,
        learned_positions=positions is not None, layernorm_embedding=layernorm,
        scale_embedding=not roberta and not args.get("no_scale_embedding", False), tie_word_embeddings=tied,
        cross_attention_size=tensors[f"{_PREFIX}cls_token"].shape[2],
    )  # fmt: skip


def _number(args: Mapping[str, Any], name: str) -> int:
    value = args.get(name)
    return value if type(value) is int and value > 0 else 0


def _is_tied(tensors: Tensors) -> bool:
    """Whether the head is the embedding. The file may hold a tied head, too, and then with the same numbers."""
    head, embedding = tensors.get("decoder.output_projection.weight"), tensors["decoder.embed_tokens.weight"]
    return head is None or (
        head.shape == embedding.shape and np.array_equal(np.asarray(head), np.asarray(embedding), equal_nan=True)
    )
