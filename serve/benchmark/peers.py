"""Other implementations that `bench` runs beside ours, on the same weights, pixels and number of tokens.

A peer is built from our model and gives a function (pixels [B,height,width,3] float32, new tokens) -> token ids [B,T].
ONNX Runtime and OpenVINO are in `onnx_peers`.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file

from trocr_jax.checkpoints import weights
from trocr_jax.model import TrOCR

Read = Callable[[np.ndarray, int], np.ndarray]
Make = Callable[[TrOCR], Read]
Mode = Literal["eager", "bfloat16", "int8", "compiled"]


def available() -> dict[str, Make]:
    """What of transformers this environment can run, by name."""
    found: dict[str, Make] = {}
    if installed("torch", "transformers"):
        import torch

        modes: dict[str, Mode] = {
            "eager, float32": "eager", "eager, bfloat16": "bfloat16", "compiled, static cache": "compiled"
        }  # fmt: skip
        if not torch.cuda.is_available():
            modes["eager, dynamic int8"] = "int8"
        found |= {f"transformers (torch, {name})": partial(transformers_on_torch, mode=mode) for name, mode in modes.items()}
    return found


def installed(*packages: str) -> bool:
    """Whether all of these can be imported."""
    return all(importlib.util.find_spec(package) is not None for package in packages)


def transformers_on_torch(model: TrOCR, mode: Mode = "eager") -> Read:
    """transformers on torch with its key-value cache on (the hub's configs turn it off), greedy, on the GPU if there is one.

    Args:
        mode: as it is, in float32; bfloat16 by autocast on a CPU and by weights on a GPU; linear maps in int8 with scales found
            as it runs; or compiled by torch with a static cache, in the better dtype of the device.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    narrow = mode == "bfloat16" or (mode == "compiled" and device == "cuda")
    weights_in = torch.bfloat16 if narrow and device == "cuda" else torch.float32
    reference = _transformers_model(model).to(device=device, dtype=weights_in)
    if mode == "int8":
        reference = _dynamic_int8(reference)
    options = {"num_beams": 1, "do_sample": False, "use_cache": True}
    if mode == "compiled":  # generate compiles the decoder's step itself when the cache is static
        reference.encoder = torch.compile(reference.encoder)
        options["cache_implementation"] = "static"

    def read(pixels: np.ndarray, tokens: int) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=narrow and device == "cpu"):
            images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).to(device, weights_in)
            out = reference.generate(images, max_new_tokens=tokens, min_new_tokens=tokens, **options)
        return out[:, 1:].cpu().numpy()

    return read


def _dynamic_int8(reference: Any) -> Any:
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells everybody to move on to another package
        return torch.ao.quantization.quantize_dynamic(reference, {torch.nn.Linear}, dtype=torch.qint8)


def _transformers_model(model: TrOCR) -> Any:
    """Our model in transformers, through the directory that `convert --to hub` would write."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        arrays = {name: array.astype(np.float32) for name, array in weights.dump(model).items()}
        save_file(arrays, Path(folder) / "model.safetensors", {"format": "pt"})
        (Path(folder) / "config.json").write_text(json.dumps(model.config.to_hf()))
        reference: Any = transformers.VisionEncoderDecoderModel.from_pretrained(folder, dtype=torch.float32).eval()
    positions = reference.decoder.model.decoder.embed_positions
    if hasattr(positions, "weights"):  # transformers 5 leaves the sinusoidal table on the meta device
        positions.weights = positions.get_embedding(positions.weights.size(0), positions.embedding_dim, positions.padding_idx)
    names = ("decoder_start_token_id", "pad_token_id", "bos_token_id", "eos_token_id")
    reference.generation_config.update(**{name: getattr(model.config, name) for name in names})
    return reference
