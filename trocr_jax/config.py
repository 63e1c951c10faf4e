"""Model configurations: frozen dataclasses that map to and from the hub's `config.json`, and the public checkpoints by name.

A field of `config.json` that this package does not know and that is switched on is refused by name: it may change the maths,
and a model that computes something else than its checkpoint is worse than no model.
Facts about the checkpoints: the hub's configs (Li et al., TrOCR, AAAI 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_type_hints

Size = tuple[int, int]
EncoderKind = Literal["vit", "deit"]

NEW_TOKENS = 128
"""Most tokens of a line where a checkpoint says nothing: ten times an ordinary one."""

ENCODER_ACTIVATIONS = ("gelu", "relu", "gelu_new", "silu")


class ConfigError(ValueError):
    """A `config.json` that this package cannot follow exactly; the message names the field."""


@dataclass(frozen=True)
class EncoderConfig:
    """ViT or DeiT image encoder. Sizes are (height, width) in pixels."""

    model_type: EncoderKind = "vit"
    image_size: Size = (384, 384)
    patch_size: Size = (16, 16)
    num_channels: int = 3
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_size: int = 3072
    activation: str = "gelu"
    qkv_bias: bool = False
    layer_norm_eps: float = 1e-12
    dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_fields(self, "encoder", _ENCODER_FIELDS)
        for image, patch in zip(self.image_size, self.patch_size, strict=True):
            _require(image % patch == 0, f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        _require(self.hidden_size % self.num_heads == 0, "encoder.hidden_size is no multiple of encoder.num_attention_heads")
        _require(self.activation in ENCODER_ACTIVATIONS, f"encoder.hidden_act {self.activation!r} is not supported")

    @property
    def grid(self) -> Size:
        """Patches down and across."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def num_special_tokens(self) -> int:
        """Class token, and DeiT's distillation token."""
        return 2 if self.model_type == "deit" else 1

    @property
    def num_tokens(self) -> int:
        """S, the number of image tokens that the decoder attends to."""
        return self.grid[0] * self.grid[1] + self.num_special_tokens


@dataclass(frozen=True)
class DecoderConfig:
    """TrOCR text decoder: post-LN transformer with cross-attention, in three families (see the README's table)."""

    vocab_size: int = 50265
    hidden_size: int = 1024
    num_layers: int = 12
    num_heads: int = 16
    mlp_size: int = 4096
    activation: str = "gelu"
    max_positions: int = 512
    learned_positions: bool = True
    layernorm_embedding: bool = True
    scale_embedding: bool = False
    tie_word_embeddings: bool = True
    cross_attention_size: int | None = None
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_fields(self, "decoder", _DECODER_FIELDS)
        _require(self.hidden_size % self.num_heads == 0, "decoder.d_model is no multiple of decoder.decoder_attention_heads")
        _require(self.activation in ENCODER_ACTIVATIONS, f"decoder.activation_function {self.activation!r} is not supported")
        _require(
            self.learned_positions or self.max_positions <= MOST_SINUSOIDS,
            f"decoder.max_position_embeddings is {self.max_positions}, expected at most {MOST_SINUSOIDS}",
        )


@dataclass(frozen=True)
class TrOCRConfig:
    """Encoder, decoder and the token ids that start, end and pad a line."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    decoder_start_token_id: int = 2
    bos_token_id: int = 0
    pad_token_id: int = 1
    eos_token_id: int = 2

    def __post_init__(self) -> None:
        width = self.decoder.cross_attention_size
        _require(
            width in (None, self.encoder.hidden_size),
            f"decoder.cross_attention_hidden_size {width} must be the encoder's hidden_size {self.encoder.hidden_size} or null",
        )
        for name in _TOKEN_IDS:
            value, count = getattr(self, name), self.decoder.vocab_size
            _require(type(value) is int and 0 <= value < count, f"{name} is {value!r:.80}, expected one token id below {count}")

    @property
    def has_projection(self) -> bool:
        """Whether `enc_to_dec_proj` stands between encoder and decoder (never in Microsoft's checkpoints)."""
        return self.encoder.hidden_size != self.decoder.hidden_size and self.decoder.cross_attention_size is None

    @property
    def memory_size(self) -> int:
        """Width of the vectors that cross-attention reads."""
        return self.decoder.hidden_size if self.has_projection else self.encoder.hidden_size

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> TrOCRConfig:
        """From the content of a hub `config.json` of a vision-encoder-decoder model.

        Raises:
            ConfigError: not such a model, or a field is set that this package does not know.
        """
        kind = config.get("model_type")
        _require(kind == "vision-encoder-decoder", f"model_type is {kind!r}, expected 'vision-encoder-decoder'")
        _require(not config.get("tie_encoder_decoder"), "tie_encoder_decoder is not supported")
        encoder, decoder = _section(config, "encoder"), _section(config, "decoder")
        ids = {name: _only(_first(config.get(name), decoder.get(name), default)) for name, default in _TOKEN_IDS.items()}
        return cls(encoder=_encoder_from_hf(encoder), decoder=_decoder_from_hf(decoder), **ids)

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that `VisionEncoderDecoderModel.from_pretrained` reads."""
        ids = {name: getattr(self, name) for name in _TOKEN_IDS}
        decoder = {hf: getattr(self.decoder, ours) for hf, ours in _DECODER_FIELDS.items()}
        return {
            "architectures": ["VisionEncoderDecoderModel"],
            "model_type": "vision-encoder-decoder",
            "is_encoder_decoder": True,
            "tie_word_embeddings": False,
            **ids,
            "encoder": _encoder_to_hf(self.encoder),
            "decoder": {
                "model_type": "trocr",
                "is_decoder": True,
                "add_cross_attention": True,
                "use_cache": True,
                **decoder,
                **ids,
            },
        }


_TOKEN_IDS = {field.name: field.default for field in fields(TrOCRConfig) if field.name.endswith("_token_id")}
_ENCODER_FIELDS = {
    "num_channels": "num_channels",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "mlp_size",
    "hidden_act": "activation",
    "qkv_bias": "qkv_bias",
    "layer_norm_eps": "layer_norm_eps",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
_DECODER_FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "decoder_layers": "num_layers",
    "decoder_attention_heads": "num_heads",
    "decoder_ffn_dim": "mlp_size",
    "activation_function": "activation",
    "max_position_embeddings": "max_positions",
    "use_learned_position_embeddings": "learned_positions",
    "layernorm_embedding": "layernorm_embedding",
    "scale_embedding": "scale_embedding",
    "tie_word_embeddings": "tie_word_embeddings",
    "cross_attention_hidden_size": "cross_attention_size",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
}

# Bookkeeping, generation defaults of transformers 4 and initialisation scales: none changes the forward pass.
_NEUTRAL = frozenset(
    "_name_or_path _attn_implementation_autoset architectures bos_token_id classifier_dropout decoder_layerdrop "
    "decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size encoder_stride "
    "eos_token_id id2label init_std initializer_range is_encoder_decoder label2id length_penalty max_length min_length "
    "no_repeat_ngram_size num_beam_groups num_beams num_return_sequences pad_token_id pooler_act pooler_output_size "
    "problem_type repetition_penalty return_dict task_specific_params temperature tokenizer_class top_k top_p torch_dtype "
    "transformers_version typical_p use_bfloat16 use_cache output_attentions output_hidden_states output_scores".split()
)
_DECODER_NEUTRAL = _NEUTRAL | {"is_decoder", "add_cross_attention", "model_type", "encoder_hidden_size"}
_ENCODER_NEUTRAL = _NEUTRAL | {"model_type", "image_size", "patch_size", "tie_word_embeddings"}


def _encoder_from_hf(section: dict[str, Any]) -> EncoderConfig:
    kind: Any = section.get("model_type")
    _require(kind in ("vit", "deit"), f"encoder.model_type is {kind!r}, expected 'vit' or 'deit'")
    _refuse_unknown(section, "encoder", _ENCODER_FIELDS.keys() | _ENCODER_NEUTRAL)
    known = {"activation": "gelu", "qkv_bias": True, **_pick(section, _ENCODER_FIELDS)}
    sizes = {name: _pair(section.get(name, default)) for name, default in (("image_size", 224), ("patch_size", 16))}
    return EncoderConfig(model_type=kind, **sizes, **known)


def _encoder_to_hf(encoder: EncoderConfig) -> dict[str, Any]:
    sizes = {name: _unpair(getattr(encoder, name)) for name in ("image_size", "patch_size")}
    return {"model_type": encoder.model_type, **sizes, **{hf: getattr(encoder, ours) for hf, ours in _ENCODER_FIELDS.items()}}


def _decoder_from_hf(section: dict[str, Any]) -> DecoderConfig:
    kind = section.get("model_type")
    _require(kind in ("trocr", "trocr_decoder"), f"decoder.model_type is {kind!r}, expected 'trocr'")
    _refuse_unknown(section, "decoder", _DECODER_FIELDS.keys() | _DECODER_NEUTRAL)
    known = _pick(section, _DECODER_FIELDS)
    # stage-1 files still carry the key from before its renaming, beside a null under the new name; null means d_model there
    known["cross_attention_size"] = _first(section.get("cross_attention_hidden_size"), section.get("encoder_hidden_size"), None)
    return DecoderConfig(**known)


MOST = 1_000_000
"""Of anything that a config counts: a hostile one could ask for more memory than there is."""
MOST_SINUSOIDS = 1 << 16
"""Positions of a decoder that learns none, whose table no weights bound."""


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= MOST


_KINDS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (_is_count, f"a whole number above 0, at most {MOST}"),
    int | None: (lambda x: x is None or _is_count(x), f"a whole number above 0, at most {MOST}, or null"),
    float: (lambda x: isinstance(x, int | float) and type(x) is not bool and 0 <= x < 1, "a number from 0 to below 1"),
    bool: (lambda x: type(x) is bool, "true or false"),
    str: (lambda x: type(x) is str, "a name"),
    Size: (
        lambda x: type(x) is tuple and len(x) == 2 and all(map(_is_count, x)),
        f"height and width, whole numbers above 0, at most {MOST}",
    ),
    EncoderKind: (lambda x: x in ("vit", "deit"), "'vit' or 'deit'"),
}


def _check_fields(config: Any, section: str, fields: dict[str, str]) -> None:
    """Every field is of its type and in range: json may hold a string, a fraction or nothing where a number belongs."""
    names = {ours: hf for hf, ours in fields.items()}
    for ours, kind in get_type_hints(type(config)).items():
        value, (fits, expected) = getattr(config, ours), _KINDS[kind]
        _require(fits(value), f"{section}.{names.get(ours, ours)} is {value!r:.80}, expected {expected}")


def _refuse_unknown(section: dict[str, Any], name: str, known: set[str] | frozenset[str]) -> None:
    unknown = [f"{name}.{key} = {value!r}" for key, value in section.items() if key not in known and value]
    _require(not unknown, "unknown fields that may change the maths: " + ", ".join(unknown))


def _pick(section: dict[str, Any], fields: dict[str, str]) -> dict[str, Any]:
    return {ours: section[hf] for hf, ours in fields.items() if section.get(hf) is not None}


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name)
    _require(isinstance(section, dict), f"config.json has no {name!r} section")
    return section  # pyright: ignore[reportReturnType]


def _pair(size: Any) -> Any:
    """One number for both, or [height, width]; whatever else stands there is refused by its field's check."""
    if isinstance(size, int):
        return size, size
    return tuple(size) if isinstance(size, list) else size


def _unpair(size: Size) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def _only(value: Any) -> Any:
    """The id in a list of one, as transformers may write it. Several, each of which would end a line, are left to be refused."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _presets() -> dict[str, TrOCRConfig]:
    base, large = EncoderConfig(), EncoderConfig(hidden_size=1024, num_layers=24, num_heads=16, mlp_size=4096)
    small = EncoderConfig("deit", hidden_size=384, num_heads=6, mlp_size=1536, qkv_bias=True)
    family_a = DecoderConfig()
    family_b = DecoderConfig(
        activation="relu", max_positions=1024, learned_positions=False, layernorm_embedding=False, scale_embedding=True,
        tie_word_embeddings=False,
    )  # fmt: skip
    family_c = DecoderConfig(
        vocab_size=64044, hidden_size=256, num_layers=6, num_heads=8, mlp_size=1024, activation="relu", scale_embedding=True,
        tie_word_embeddings=False,
    )  # fmt: skip
    rows = {
        "small-stage1": (small, family_c), "small-handwritten": (small, family_c), "small-printed": (small, family_c),
        "base-stage1": (base, family_b), "base-handwritten": (base, family_a), "base-printed": (base, family_a),
        "base-str": (base, family_a),
        "large-stage1": (large, family_b), "large-handwritten": (large, family_a), "large-printed": (large, family_b),
        "large-str": (large, family_a),
    }  # fmt: skip
    return {
        f"microsoft/trocr-{name}": TrOCRConfig(encoder, replace(decoder, cross_attention_size=encoder.hidden_size))
        for name, (encoder, decoder) in rows.items()
    }


PRESETS: dict[str, TrOCRConfig] = _presets()
"""The eleven public checkpoints by their hub names. base-str and large-str are inferred from file sizes and sibling models."""
