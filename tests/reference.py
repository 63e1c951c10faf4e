"""The reference implementation, transformers on torch, as the tests use it: random small models and their outputs."""

import logging
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import torch

from trocr_jax.checkpoints import weights
from trocr_jax.config import DecoderConfig, EncoderConfig, TrOCRConfig
from trocr_jax.model import TrOCR

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from transformers import VisionEncoderDecoderConfig, VisionEncoderDecoderModel

transformers.logging.set_verbosity_error()
logging.getLogger("transformers").setLevel(logging.ERROR)
torch.set_num_threads(2)


def random_config(family: str, seed: int) -> TrOCRConfig:
    """A small config of family A, B or C with varied sizes; now and then third-party traits: a projection, rectangles."""
    rng = np.random.default_rng(seed)
    heads, head_dim = int(rng.choice([2, 4])), int(rng.choice([8, 16]))
    patch = (int(rng.choice([8, 16])), int(rng.choice([4, 8])))
    encoder = EncoderConfig(
        model_type="deit" if family == "C" else "vit",
        image_size=(patch[0] * int(rng.integers(1, 4)), patch[1] * int(rng.integers(2, 5))), patch_size=patch,
        hidden_size=heads * head_dim, num_layers=int(rng.integers(1, 4)), num_heads=heads, mlp_size=int(rng.choice([32, 48])),
        qkv_bias=family == "C",
    )  # fmt: skip
    width = int(rng.choice([2, 4])) * 12
    projected = width != encoder.hidden_size and rng.random() < 0.25
    decoder = DecoderConfig(
        vocab_size=int(rng.integers(40, 90)), hidden_size=width, num_layers=int(rng.integers(1, 4)), num_heads=4,
        mlp_size=int(rng.choice([32, 64])), activation="gelu" if family == "A" else "relu", max_positions=40,
        learned_positions=family != "B", layernorm_embedding=family != "B", scale_embedding=family != "A",
        tie_word_embeddings=family == "A", cross_attention_size=None if projected else encoder.hidden_size,
    )  # fmt: skip
    return TrOCRConfig(encoder, decoder, pad_token_id=int(rng.choice([0, 1, 3])))


def torch_model(config: TrOCRConfig, seed: int = 0, scale: float = 0.1) -> VisionEncoderDecoderModel:
    """A torch model with every parameter drawn, biases and norms too: what starts at zero would hide that it was dropped."""
    hf = VisionEncoderDecoderConfig.from_dict(config.to_hf())
    torch.manual_seed(seed)
    model = VisionEncoderDecoderModel(hf).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    generation = {
        name: getattr(config, name) for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id", "eos_token_id")
    }
    model.generation_config.update(**generation, use_cache=True)
    return model


def ours(model: VisionEncoderDecoderModel, config: TrOCRConfig, dtype=jnp.float32) -> TrOCR:
    """The same model in JAX, through the project's own loading."""
    tensors = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    return weights.load(TrOCR.abstract(config, dtype), tensors)


def random_pixels(config: TrOCRConfig, batch: int, seed: int = 0) -> np.ndarray:
    """Normalised pixels [B,height,width,C]."""
    size = config.encoder.image_size
    return np.random.default_rng(seed).uniform(-1, 1, (batch, *size, config.encoder.num_channels)).astype(np.float32)


def nchw(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def close(a: jax.Array, b: torch.Tensor | np.ndarray, tolerance: float) -> None:
    """Equal within the tolerance, relative to the largest value where that exceeds 1."""
    a, b = np.asarray(a, np.float64), np.asarray(b.detach() if isinstance(b, torch.Tensor) else b, np.float64)
    assert a.shape == b.shape
    error, scale = np.abs(a - b).max(), max(1.0, np.abs(b).max())
    assert error <= tolerance * scale, f"differs by {error:.2e} where values reach {scale:.3g}"
