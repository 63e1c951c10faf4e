"""Serves models over HTTP: OpenAI's API (/v1/chat/completions, /v1/responses), /v1/ocr for many images, and a page at /.

API keys come from --api-key-file or from TROCR_API_KEY (several with commas between). docs/operations.md tells the rest.
"""

from __future__ import annotations

from trocr_jax.cli import load

from .api.config import Config

__all__ = ["Config", "run"]


def run(config: Config) -> int:
    """Serves until SIGTERM or SIGINT; 0 after an orderly end."""
    return load("trocr_jax.serve.api.launch", "serve", "serve").launch(config)  # late: --help needs no web packages and no jax
