"""TrOCR in JAX and Flax: reads single lines of text. `Reader` is the way in; the rest is there for research and training."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import PRESETS, DecoderConfig, EncoderConfig, TrOCRConfig
    from .decoding import GenerateConfig, Generation, generate, read_pixels
    from .line import Line, Token, Word
    from .model import TrOCR
    from .reader import Reader

__all__ = [
    "PRESETS", "DecoderConfig", "EncoderConfig", "GenerateConfig", "Generation", "Line", "Reader", "Token", "TrOCR",
    "TrOCRConfig", "Word", "generate", "read_pixels",
]  # fmt: skip

_HOMES = {
    "config": ("PRESETS", "DecoderConfig", "EncoderConfig", "TrOCRConfig"),
    "decoding": ("GenerateConfig", "Generation", "generate", "read_pixels"),
    "line": ("Line", "Token", "Word"),
    "model": ("TrOCR",),
    "reader": ("Reader",),
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: `trocr-jax --help` need not wait for jax."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{home}", __name__), name)
    if name == "__version__":
        return import_module(".cli", __name__).package_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What completion offers."""
    return [*__all__, "__version__"]
