"""Tesseract 5 on pictures of one line each, for comparisons. It runs as a program; this package does not require it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path


def read_lines(pictures: Sequence[Path], names: Path, *arguments: str, program: str = "tesseract") -> str:
    """What one process with one thread writes of picture files, in their order; `--psm 7` says that a picture is one line.

    Args:
        names: a file to write the list of pictures to.
        arguments: more of the command line, like a language or the form of the output.
        program: Tesseract's name or path.

    Raises:
        ValueError: Tesseract failed.
    """
    names.write_text("".join(f"{picture}\n" for picture in pictures), encoding="utf-8")
    command = [program, str(names), "stdout", "--psm", "7", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_THREAD_LIMIT": "1"})
    if done.returncode:
        raise ValueError(f"{program} failed: {(done.stderr.strip() or 'no message').splitlines()[0]}")
    return done.stdout
