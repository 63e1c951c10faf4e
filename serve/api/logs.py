"""Logs as JSON, one object a line, on stderr. They tell who asked for what and how long it took, never an image or its text.

Of an exception they tell its type and where it happened, not its message, which may quote what a client sent.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

logger = logging.getLogger("trocr_jax.serve")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        event = record.getMessage() if record.name == logger.name else f"{record.name}: {record.msg}"  # without a client's words
        entry: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "event": event}
        entry |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1]:
            error = record.exc_info[1]
            frames = traceback.extract_tb(error.__traceback__)
            entry |= {"error": type(error).__name__, "at": [f"{_short(f.filename)}:{f.lineno} {f.name}" for f in frames[-6:]]}
        return json.dumps(entry, default=str)


def _short(path: str) -> str:
    return "/".join(path.rsplit("/", 2)[-2:])


def configure(level: str = "INFO") -> None:
    """Everything that this process logs goes through the formatter; uvicorn's lines about single requests are ours to write."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logger.setLevel(level)


def log(event: str, *, level: int = logging.INFO, error: BaseException | None = None, **fields: Any) -> None:
    """One entry."""
    logger.log(level, event, extra={"fields": fields}, exc_info=error)
