"""Other implementations that `bench` runs beside ours, on the same weights, pixels and number of tokens.

A peer is built from our model and gives a function (pixels [B,height,width,3] float32, new tokens) -> token ids [B,T].
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from trocr_jax import weights
from trocr_jax.model import TrOCR

Read = Callable[[np.ndarray, int], np.ndarray]


def available() -> dict[str, Callable[[TrOCR], Read]]:
    """The peers that this environment has, by name."""
    found: dict[str, Callable[[TrOCR], Read]] = {}
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        found["transformers (torch, eager, float32)"] = transformers_eager
    return found


def transformers_eager(model: TrOCR) -> Read:
    """transformers on torch with its key-value cache on (the hub's configs turn it off), greedy, all cores."""
    import torch

    reference = _transformers_model(model)
    ids = {
        name: getattr(model.config, name) for name in ("decoder_start_token_id", "pad_token_id", "bos_token_id", "eos_token_id")
    }
    reference.generation_config.update(**ids)

    def read(pixels: np.ndarray, tokens: int) -> np.ndarray:
        with torch.inference_mode():
            images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
            out = reference.generate(
                images, max_new_tokens=tokens, min_new_tokens=tokens, num_beams=1, do_sample=False, use_cache=True
            )
        return out[:, 1:].numpy()

    return read


def _transformers_model(model: TrOCR) -> Any:
    """Our model in transformers, through the directory that `convert --to hub` would write."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        arrays = {name: array.astype(np.float32) for name, array in weights.dump(model).items()}
        save_file(arrays, Path(folder) / "model.safetensors", {"format": "pt"})
        (Path(folder) / "config.json").write_text(json.dumps(model.config.to_hf()))
        reference: Any = transformers.VisionEncoderDecoderModel.from_pretrained(folder, dtype=torch.float32).eval()
    positions = reference.decoder.model.decoder.embed_positions
    if hasattr(positions, "weights"):  # transformers 5 leaves the sinusoidal table on the meta device
        positions.weights = positions.get_embedding(positions.weights.size(0), positions.embedding_dim, positions.padding_idx)
    return reference
