"""How a checkpoint says that it wants to be decoded: generation_config.json, or config.json where it has none.

Many fine-tuned models set `model.config.num_beams` and the like, as the usual notebooks do; transformers follows those too.
Settings that are not followed here are reported: a model should not silently read differently from what its author saw.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import files
from ..config import TrOCRConfig

NAME = "generation_config.json"
# Values that change nothing; old config.json files list them all, whoever set them.
FOLLOWED: dict[str, Any] = {
    "max_length": 20, "max_new_tokens": None, "min_length": 0, "min_new_tokens": None, "num_beams": 1, "length_penalty": 1.0,
    "early_stopping": False, "no_repeat_ngram_size": 0,
}  # fmt: skip
NOT_FOLLOWED: dict[str, Any] = {
    "do_sample": False, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None, "suppress_tokens": None, "begin_suppress_tokens": None, "forced_bos_token_id": None,
    "num_beam_groups": 1, "diversity_penalty": 0.0, "penalty_alpha": None, "constraints": None, "force_words_ids": None,
    "sequence_bias": None, "exponential_decay_length_penalty": None, "forced_eos_token_id": None, "renormalize_logits": False,
    "guidance_scale": 1.0,
}  # fmt: skip


def read_settings(directory: Path, config: TrOCRConfig) -> dict[str, Any]:
    """A checkpoint's settings by transformers' names, those of FOLLOWED that change something.

    Args:
        directory: a model directory in the hub's layout.
        config: what its config.json says.

    Warns of settings that are not followed. Raises FilesError for json that cannot be read.
    """
    path = directory / NAME
    settings = files.read_json(path) if path.exists() else in_model_config(files.read_json(directory / "config.json"))
    ignored = [f"{name} = {value!r:.80}" for name, value in _set(settings, NOT_FOLLOWED).items()]
    ignored += contradictions(settings, config)
    if ignored:
        warnings.warn(f"{directory}: not followed when decoding: {', '.join(ignored)}", stacklevel=2)
    return _set(settings, FOLLOWED)


def contradictions(settings: Mapping[str, Any], config: TrOCRConfig) -> list[str]:
    """The token ids of a generation_config.json that are not those of config.json, which the model was trained with."""
    pairs = {name: (settings.get(name), getattr(config, name)) for name in ("decoder_start_token_id", "eos_token_id")}
    return [
        f"{name} = {other!r:.80} (config.json says {own}, which the model was trained with)"
        for name, (other, own) in pairs.items()
        if other not in (None, own, [own])
    ]


def in_model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a config.json holds: those of the decoder, overridden by those at the top level."""
    everything = FOLLOWED | NOT_FOLLOWED
    decoder = config.get("decoder")
    return _set(decoder if isinstance(decoder, dict) else {}, everything) | _set(config, everything)


def _set(settings: Mapping[str, Any], at_rest: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name, rest in at_rest.items() if settings.get(name) not in (None, rest)}
