"""A new TrOCR put together as the paper's were: an image encoder pretrained alone, a decoder from RoBERTa's last layers.

What stands where (Li et al., section "Model initialization", and the two branches of the released code):
* encoder: ViT and DeiT as they are. BEiT becomes the plain ViT of the released checkpoints: its layer scale is folded into
  the projections that it scales and its query and value biases are kept (exact); its relative position biases are dropped and
  its positions, where it has no absolute ones, start fresh.
* decoder "roberta2": everything of RoBERTa but its head: learned positions, embedding LayerNorm, GELU, tied head.
* decoder "roberta": token embeddings and self-attention with its LayerNorm; sinusoidal positions, ReLU, own head.
* cross-attention, and what else no checkpoint gives, starts fresh; every such name is reported.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trocr_jax import files
from trocr_jax.checkpoints import tensor_files, weights
from trocr_jax.checkpoints.tensor_files import ArrayLike
from trocr_jax.config import Size, TrOCRConfig

Branch = Literal["roberta2", "roberta"]
Named = dict[str, ArrayLike]

ENCODERS = ("vit", "deit", "beit")
DECODERS = ("roberta", "xlm-roberta")
_IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}  # of both, and of the TrOCR that is made
_ENCODER_FIELDS = (
    "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "hidden_act", "layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob",
)  # fmt: skip
_UNUSED = re.compile(
    r"(pooler\.dense|classifier|cls_classifier|distillation_classifier|lm_head|decoder)\..*|embeddings\.(mask_token|position_ids)"
    r"|lm_head|.*relative_position_(index|bias_table)"
)
_SELF_ATTENTION = {
    "attention.self.query": "self_attn.q_proj", "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj", "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "self_attn_layer_norm",
}  # fmt: skip
_SCALES = ("lambda_1", "lambda_2")
_MLP = {"intermediate.dense": "fc1", "output.dense": "fc2", "output.LayerNorm": "final_layer_norm"}


def warm_start(
    encoder: Path, decoder: Path, *, branch: Branch = "roberta2", decoder_layers: int = 12,
    image_size: Size | None = None, seed: int = 0, dtype: Any = "float32",
) -> tuple[Any, list[str]]:  # fmt: skip
    """A TrOCR from two pretrained halves.

    Args:
        encoder: hub-layout directory of a ViT, DeiT or BEiT.
        decoder: hub-layout directory of a RoBERTa or XLM-RoBERTa.
        branch: which of the two initialisations of the released code.
        decoder_layers: how many of the last layers to take.
        image_size: (height, width); positions are interpolated; by default the encoder's own.
        seed: decides the random numbers of what starts fresh.

    Returns:
        The model, and remarks about what was dropped and what starts fresh.

    Raises:
        ValueError: an unsupported kind of checkpoint, or tensors that do not fit.
    """
    try:
        return _warm_start(encoder, decoder, branch, decoder_layers, image_size, seed, dtype)
    except KeyError as error:
        raise ValueError(f"{encoder} or {decoder}: not a complete checkpoint, {error} is missing") from None


def _warm_start(
    encoder: Path, decoder: Path, branch: Branch, decoder_layers: int, image_size: Size | None, seed: int, dtype: Any
) -> tuple[Any, list[str]]:
    import jax
    from flax import nnx

    from trocr_jax.model import TrOCR

    encoder_config, image = _read_config(encoder, ENCODERS)
    decoder_config, text = _read_config(decoder, DECODERS)
    remarks: list[str] = []
    config = TrOCRConfig.from_hf({
        "model_type": "vision-encoder-decoder",
        "encoder": _encoder_section(encoder_config, image, image_size),
        "decoder": _decoder_section(decoder_config, text, branch, decoder_layers, encoder_config["hidden_size"]),
    })  # fmt: skip
    fresh = jax.jit(lambda: TrOCR(config, dtype=dtype, rngs=nnx.Rngs(seed)))()
    tensors: Named = dict(weights.to_hub(weights.arrays(fresh), config))
    given = _encoder(image, encoder_config, config, remarks) | _decoder(text, decoder_config, config, branch, remarks)
    unchanged = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in tensors.keys() - given.keys()})
    remarks.append("fresh: " + ", ".join(unchanged))
    return weights.load(TrOCR.abstract(config, dtype), tensors | given), remarks


def _read_config(directory: Path, kinds: tuple[str, ...]) -> tuple[dict[str, Any], Named]:
    """A checkpoint's config, and its tensors without the prefix that a head on top of the model puts before their names."""
    config = files.read_json(directory / "config.json")
    kind = config.get("model_type")
    if kind not in kinds:
        raise ValueError(f"{directory}: model_type is {kind!r}, a warm start needs {', '.join(kinds)}")
    tensors = {_plain_name(name): tensor for name, tensor in tensor_files.open_tensors(directory).items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not _UNUSED.fullmatch(name)}
    if whole := [f"{name} {tensor.dtype}" for name, tensor in tensors.items() if tensor.dtype not in weights.FLOATS]:
        raise ValueError(f"{directory}: weights that are not floating point: {', '.join(whole)}")
    layers = {found[1] for name in tensors if (found := re.match(r"(?:encoder\.)?layers?\.(\d+)\.", name))}
    if len(layers) != (said := config.get("num_hidden_layers", len(layers))):
        raise ValueError(f"{directory}: the weights have {len(layers)} layers, config.json says {said!r:.80}")
    return config, tensors


def _plain_name(name: str) -> str:
    name = re.sub(r"^(vit|deit|beit|roberta)\.", "", name)
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


# --- the encoder ---


def _encoder_section(config: dict[str, Any], tensors: Named, image_size: Size | None) -> dict[str, Any]:
    kept = {name: config[name] for name in _ENCODER_FIELDS if name in config}
    biased = any(name.endswith(("query.bias", "q_proj.bias")) for name in tensors)
    kind = "deit" if config["model_type"] == "deit" else "vit"
    size = list(image_size) if image_size else config.get("image_size", 224)
    return {"model_type": kind, "image_size": size, "qkv_bias": biased, **kept}


def _encoder(tensors: Named, source: dict[str, Any], config: TrOCRConfig, remarks: list[str]) -> Named:
    """The encoder's tensors under TrOCR's hub names."""
    if source["model_type"] == "beit":
        tensors = _plain_vit(tensors, config, remarks)
    table = tensors.get("embeddings.position_embeddings")
    if table is not None:
        tensors["embeddings.position_embeddings"] = _resized(np.asarray(table), source, config, remarks)
    return weights.hub_names({f"encoder.{name}": tensor for name, tensor in tensors.items()})


def _resized(table: np.ndarray, source: dict[str, Any], config: TrOCRConfig, remarks: list[str]) -> np.ndarray:
    """Positions [1,S,D] of the checkpoint's image size, interpolated to the config's."""
    import jax.numpy as jnp

    from trocr_jax.network.encoder import interpolate_grid

    old = [size // patch for size, patch in zip(_pair(source["image_size"]), config.encoder.patch_size, strict=True)]
    special, new = config.encoder.num_special_tokens, config.encoder.grid
    if tuple(old) == new or table.shape[1] != old[0] * old[1] + special:
        return table
    remarks.append(f"interpolated: positions from {old[0]}x{old[1]} to {new[0]}x{new[1]} patches")
    grid = np.asarray(interpolate_grid(jnp.asarray(table[0, special:], "f4"), (old[0], old[1]), new))
    return np.concatenate([table[:, :special], grid[None].astype(table.dtype)], axis=1)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _plain_vit(tensors: Named, config: TrOCRConfig, remarks: list[str]) -> Named:
    """BEiT's tensors as a plain ViT's: layer scale folded in, a zero key bias where queries and values have one.

    A BEiT that pools patches has its last LayerNorm after the pooling; it is the same map on every token.
    """
    out = {name.replace("pooler.layernorm.", "layernorm."): tensor for name, tensor in tensors.items()}
    scaled = any(name.endswith(_SCALES) for name in out)
    out = {name: tensor for name, tensor in out.items() if not name.endswith(_SCALES)}
    for i in range(config.encoder.num_layers):
        layer = f"encoder.layer.{i}"
        for scale, module in (("lambda_1", "attention.output.dense"), ("lambda_2", "output.dense")):
            if scaled:
                factor = np.asarray(tensors[f"{layer}.{scale}"])
                for name in (f"{layer}.{module}.weight", f"{layer}.{module}.bias"):
                    out[name] = (np.asarray(tensors[name]).T * factor).T
        if config.encoder.qkv_bias:
            out[f"{layer}.attention.attention.key.bias"] = np.zeros(config.encoder.hidden_size, "f4")
    remarks.append("dropped: BEiT's relative position biases; TrOCR's encoder is a plain ViT")
    return out


# --- the decoder ---


def _decoder_section(config: dict[str, Any], tensors: Named, branch: Branch, layers: int, memory_size: int) -> dict[str, Any]:
    if other := [f"{name} {config[name]!r:.80}, not {index}" for name, index in _IDS.items() if config.get(name, index) != index]:
        raise ValueError(f"the decoder's checkpoint has {'; '.join(other)}, as in RoBERTa and XLM-RoBERTa: tokens differ")
    total, eps = config["num_hidden_layers"], config.get("layer_norm_eps", 1e-12)  # as RobertaConfig has it
    if not 1 <= layers <= total:
        raise ValueError(f"the decoder's checkpoint has {total} layers; {layers} of them were asked for")
    if eps != 1e-5 or config.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError("the decoder's layer_norm_eps must be 1e-5 and its positions absolute, TrOCR has no others")
    positions = tensors["embeddings.position_embeddings.weight"].shape[0] - 2
    learned = {"max_position_embeddings": positions, "activation_function": config.get("hidden_act", "gelu")}
    plain = {
        "max_position_embeddings": 1024, "activation_function": "relu", "use_learned_position_embeddings": False,
        "layernorm_embedding": False, "scale_embedding": True, "tie_word_embeddings": False,
    }  # fmt: skip
    return {
        "model_type": "trocr", "vocab_size": config["vocab_size"], "d_model": config["hidden_size"],
        "decoder_layers": layers, "decoder_attention_heads": config["num_attention_heads"],
        "decoder_ffn_dim": config["intermediate_size"], "cross_attention_hidden_size": memory_size,
        "dropout": config.get("hidden_dropout_prob", 0.1), **(learned if branch == "roberta2" else plain),
    }  # fmt: skip


def _decoder(tensors: Named, source: dict[str, Any], config: TrOCRConfig, branch: Branch, remarks: list[str]) -> Named:
    """The decoder's tensors under TrOCR's hub names."""
    root, first = "decoder.model.decoder", source["num_hidden_layers"] - config.decoder.num_layers
    modules = _SELF_ATTENTION | (_MLP if branch == "roberta2" else {})
    out: Named = {f"{root}.embed_tokens.weight": tensors["embeddings.word_embeddings.weight"]}
    if branch == "roberta2":
        out[f"{root}.embed_positions.weight"] = _positions(tensors)
        for kind in ("weight", "bias"):
            out[f"{root}.layernorm_embedding.{kind}"] = tensors[f"embeddings.LayerNorm.{kind}"]
    for i in range(config.decoder.num_layers):
        for theirs, ours in modules.items():
            for kind in ("weight", "bias"):
                out[f"{root}.layers.{i}.{ours}.{kind}"] = tensors[f"encoder.layer.{first + i}.{theirs}.{kind}"]
    if first:
        remarks.append(f"dropped: the decoder checkpoint's first {first} layers, and its head")
    return out


def _positions(tensors: Named) -> np.ndarray:
    """RoBERTa adds a token type, always the same one, to every position: one table holds both."""
    table = np.asarray(tensors["embeddings.position_embeddings.weight"])
    kinds = tensors.get("embeddings.token_type_embeddings.weight")
    return table if kinds is None else table + np.asarray(kinds)[:1]
