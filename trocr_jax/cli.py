"""`trocr-jax VERB ...`: one line a verb here, the verbs where they belong; only the one asked for is imported.

Results go to stdout, progress and remarks to stderr. Exit codes: 0 fine, 1 ran but something failed, 2 wrong use.
"""

from __future__ import annotations

import atexit
import codecs
import gc
import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .terminal import INTERRUPTED, complain, guarded, unread

VERBS = {
    "read": ("trocr_jax.commands.read", "read the text of line images"),
    "convert": ("trocr_jax.convert.cli", "convert weights: hub, fairseq, BEiT + RoBERTa, Orbax"),
    "train": ("trocr_jax.train.cli", "fine-tune or train a model"),
    "eval": ("trocr_jax.train.evaluate", "measure a model: CER, WER, accuracy, calibration"),
    "batch": ("trocr_jax.serve.batch", "read millions of line images, on any number of machines"),
    "serve": ("trocr_jax.serve.cli", "an OpenAI-compatible server with a web page"),
    "bench": ("trocr_jax.serve.bench", "measure speed beside other implementations"),
    "doctor": ("trocr_jax.commands.doctor", "check this machine and a checkpoint"),
}
INT8 = "trocr_jax.serve.onnx_backend"
EXTRAS = {"train": "train", "eval": "train", "batch": "batch"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit code. Without arguments they are the process's own, and so is the process."""
    if arguments is not None:
        return _verb(list(arguments))
    _collect_seldom()
    return _ended(_verb(sys.argv[1:]))


def _verb(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        try:
            print(usage(), file=sys.stdout if arguments else sys.stderr, flush=True)
        except BrokenPipeError:
            return unread()
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(package_version())
        return 0
    if arguments[0] not in VERBS:
        return complain(f"no such command: {arguments[0]!r}. Commands: {', '.join(VERBS)}", 2)
    verb = arguments[0]
    return _run(VERBS[verb][0], f"trocr-jax {verb}", arguments[1:], verb, EXTRAS.get(verb))


def program(module: str) -> int:
    """`python -m MODULE ...` for modules that have a Config and a run as the verbs do; returns the exit code."""
    _collect_seldom()
    return _ended(_run(module, f"python -m {module}", sys.argv[1:], module))


def _ended(code: int) -> int:
    """The exit code; of what was interrupted the process ends here, as Python's own end crashes while XLA's threads run."""
    if code == INTERRUPTED:
        with suppress(OSError):  # nobody reads any more
            sys.stdout.flush()
        os._exit(code)
    return code


def _collect_seldom() -> None:
    """Has Python's garbage collector look seldom: it looks through JAX's modules 400 times while they are loaded, and again at
    exit. One picture is read in a sixth less time.
    """
    gc.set_threshold(50_000, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)


def _run(module: str, prog: str, arguments: list[str], wanted: str, extra: str | None = None) -> int:
    """Parses flags into a module's Config and calls its run(config)."""

    def work() -> int:
        app = load(module, wanted, extra)
        return app.run(_parse(app, prog, arguments))

    if sys.stderr is None:  # closed: what is printed there would go among the results
        sys.stderr = open(os.devnull, "w")
    _allow_any_name(sys.stdout)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about damaged metadata; what makes an image unreadable is an error
    return guarded(work)


def _parse(app: Any, prog: str, arguments: list[str]) -> Any:
    if hasattr(app, "parse"):  # presets and files have a say before the flags
        return app.parse(arguments, prog)
    import tyro

    return tyro.cli(app.Config, prog=prog, args=arguments, description=app.__doc__)


def load(module: str, wanted: str, extra: str | None = None) -> Any:
    """Imports a module that may need an extra of this package; `wanted` is what the person asked for.

    Raises ValueError, which names the missing Python package and what installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("trocr_jax"):
            raise
        ours = f"trocr-jax[{extra}]" if extra else "trocr-jax"
        raise ValueError(f"{wanted} needs the Python package {error.name!r}: pip install '{ours}'") from None


def int8_backend() -> Any:
    """What --dtype int8 reads with, `serve.onnx_backend`, on the CPU: a GPU or TPU is left to others.

    Raises ValueError where ONNX Runtime is missing or not for this machine.
    """
    load("jax", "--dtype int8").config.update("jax_platforms", "cpu")
    try:
        load("onnxruntime", "--dtype int8", "onnx")  # the backend imports it late
        return load(INT8, "--dtype int8", "onnx")
    except ImportError as error:
        raise ValueError(f"--dtype int8: {error}") from None


def _allow_any_name(stream: Any) -> None:
    """Lets a stream print any file name: bytes that are not UTF-8 as they are, characters that its encoding lacks as escapes."""
    if isinstance(stream, io.TextIOWrapper):  # a caller may have put something else in its place
        utf8 = codecs.lookup(stream.encoding).name == "utf-8"
        stream.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")


def usage() -> str:
    """What `trocr-jax --help` prints."""
    rows = "\n".join(f"  {verb:<9}{text}" for verb, (_, text) in VERBS.items())
    return (
        "usage: trocr-jax COMMAND ...\n\nTrOCR in JAX: reads single lines of text.\n\n"
        f"{rows}\n\n'trocr-jax COMMAND --help' tells its options."
    )


def package_version() -> str:
    """The installed version, or "unknown" in a bare checkout."""
    try:
        return version("trocr-jax")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    from trocr_jax import cli  # not this second copy of itself

    raise SystemExit(cli.main())
