"""What every command shares: errors in one line on stderr, exit codes, and checks of flags before long work begins."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell has it."""


class UsageError(Exception):
    """A wrong call: the message is for the person who typed it."""


def guarded(work: Callable[[], int]) -> int:
    """Runs some work and returns its exit code; an error is shown as one line, or with TROCR_TRACEBACK=1 as a traceback."""
    if os.environ.get("TROCR_TRACEBACK") == "1":
        return work()
    try:
        return work()
    except UsageError as error:
        return complain(str(error), 2)
    except BrokenPipeError:
        return unread()
    except (ValueError, OSError) as error:
        return complain(str(error), 1)
    except (NotImplementedError, RecursionError):  # mistakes of ours, whose place is worth seeing
        raise
    except RuntimeError as error:  # JAX's: no such device, no memory left; what follows the first line is for its authors
        hint = "; fewer beams or a smaller batch take less memory" if "RESOURCE_EXHAUSTED" in str(error) else ""
        return complain(str(error).partition("\n")[0].rstrip(".") + hint, 1)
    except AssertionError as error:
        if not _without_platform(error):
            raise
        wanted = os.environ["JAX_PLATFORMS"]
        return complain(f"JAX_PLATFORMS={wanted}: JAX's plugin for it is not installed (pip install 'trocr-jax[cuda]')", 1)
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)


def _without_platform(error: AssertionError) -> bool:
    """Whether this is JAX's error for a platform in JAX_PLATFORMS that it knows but whose plugin is not installed."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return "JAX_PLATFORMS" in os.environ and frame.f_globals["__name__"] == "jax._src.xla_bridge"


def unread() -> int:
    """Handles that whoever reads our output has closed it; returns the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at exit
    return 1


def complain(message: str, code: int) -> int:
    """One line on stderr; returns the exit code."""
    remark(message)
    return code


def remark(message: str) -> None:
    """One line on stderr. What a file's name has in it cannot break out of the line."""
    print(f"trocr-jax: {printable(message)}", file=sys.stderr)


def printable(text: str) -> str:
    """The text, with characters that would move a terminal's cursor or begin a line escaped as Python writes them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def check_writable(path: Path, flag: str) -> None:
    """Checks, before long work begins, that the file for its result can be written.

    Raises:
        UsageError: it could not be written, as far as can be told beforehand.
    """
    if path.is_dir():
        raise UsageError(f"{flag} {path}: is a folder")
    if not path.parent.is_dir():
        raise UsageError(f"{flag} {path}: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{flag} {path}: no permission to write there")


def check_pattern(pattern: str) -> None:
    """Checks a flag --pattern before a model is loaded: raises UsageError for mistakes that can be found without one."""
    try:
        importlib.import_module("trocr_jax.patterns").check(pattern)
    except ValueError as error:
        raise UsageError(f"--pattern: {error}") from None


def check_known(kind: str, names: Iterable[str], known: Collection[str]) -> None:
    """Checks the names given to a flag: raises UsageError for unknown ones, and says which names are known."""
    if unknown := set(names) - set(known):
        raise UsageError(f"no {kind} {', '.join(sorted(unknown))}; there are {', '.join(known)}")
