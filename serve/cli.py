"""Serves models over HTTP: OpenAI's API (/v1/chat/completions, /v1/responses), /v1/ocr for many images, and a page at /.

API keys come from --api-key-file or from TROCR_API_KEY (several with commas between). docs/operations.md tells the rest.
"""

from __future__ import annotations

from trocr_jax.cli import UsageError

from .config import Config

__all__ = ["Config", "run"]


def run(config: Config) -> int:
    """Serves until SIGTERM or SIGINT; 0 after an orderly end."""
    try:
        from .launch import launch  # here, so that --help needs neither the web packages nor jax
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("trocr_jax"):
            raise
        raise UsageError(f"serve needs the Python package {error.name!r}: pip install 'trocr-jax[serve]'") from None
    return launch(config)
