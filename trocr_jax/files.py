"""Model directories on disk and on the hub: found, read lazily, and written so that a crash leaves nothing half done.

A model directory has the hub's layout (`config.json`, weights, tokenizer and preprocessing files) plus, when this
package wrote it, `manifest.json` with the sha256 of every file: safetensors and Orbax do not notice a flipped bit.
Nothing here knows what the tensors mean (`weights`) and nothing imports jax.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PACKAGED = Path(__file__).parent / "tiny-print"
MANIFEST, ORBAX = "manifest.json", "orbax"
BYTE_LEVEL = ("vocab.json", "merges.txt")
SENTENCEPIECE = ("sentencepiece.bpe.model",)
TOKENIZER_JSON = ("tokenizer.json",)
TOKENIZERS = (BYTE_LEVEL, SENTENCEPIECE, TOKENIZER_JSON)
"""The files that make a tokenizer: one of these kinds is enough, see `checkpoints.tokenizer_files`."""
TOKENIZER_FILES = (
    *BYTE_LEVEL, *SENTENCEPIECE, *TOKENIZER_JSON, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
JSON_LIMIT = 64 << 20  # bytes; the largest json of a model directory is a tokenizer of 2.4 MB
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@\w[\w.+-]*(/\w[\w.+-]*)*)?")


class FilesError(ValueError):
    """A model directory or file that is absent, incomplete or damaged. One line that says which and what to do."""


# --- finding ---


def resolve(name: str | Path | None = None) -> Path:
    """A model directory (or a single weight file) on this machine: a path as it is, a hub name through the hub's cache.

    Args:
        name: a path; a hub name like "microsoft/trocr-base-printed", with a commit, tag or branch as "owner/model@revision";
            None for the model in the package. What exists as a path is one.
            `HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_HOME` and `HF_TOKEN` work as huggingface_hub documents them.

    Raises:
        FilesError: no such path, no such repository, or no network and not in the cache.
    """
    if name is None:
        return PACKAGED
    path = expand(name)
    if name != "" and path.exists():
        return path
    if isinstance(name, Path) or not _HUB_NAME.fullmatch(name) or name.endswith((".pt", ".bin", ".safetensors")):
        raise FilesError(f"{name}: no such file or directory, and not a hub name like owner/model")
    return _download(name)


def expand(path: str | Path) -> Path:
    """A path with its `~` or `~user` replaced.

    Raises:
        FilesError: there is no such user, or no home directory.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise FilesError(f"{path}: no such file or directory, {Path(path).parts[0]} is nobody's home") from None


def _download(name: str) -> Path:
    """Downloads a model; `pytorch_model.bin` only where there are no better weights, as in half of the family."""
    small = ["*.json", *(file for file in TOKENIZER_FILES if not file.endswith(".json"))]
    path = _snapshot(name, [*small, "model*.safetensors", f"{ORBAX}/*"])
    better = (path / ORBAX).is_dir() or any(path.glob("model*.safetensors"))
    return path if better else _snapshot(name, [*small, "pytorch_model*.bin"])


def _snapshot(name: str, patterns: list[str]) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    repository, _, revision = name.partition("@")
    try:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except errors.GatedRepoError:
        reason = "the hub wants you to accept its terms and to set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        reason = "no such directory here and no such model on the hub (a private one needs HF_TOKEN)"
    except errors.RevisionNotFoundError:
        reason = "the hub has this model, but no such commit, tag or branch of it"
    except errors.HFValidationError:
        reason = "no such directory here, and not a valid hub name"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.IncompleteSnapshotError):
        reason = _why_unreachable()
    except errors.HfHubHTTPError as error:
        reason = f"the hub answered with HTTP status {error.response.status_code}; try again later"
    except OSError as error:
        reason = f"the download could not be stored ({error.strerror or type(error).__name__})"
    except Exception as error:  # the hub client's transport has its own exception types, which change with its versions
        reason = f"the download failed ({type(error).__name__}); try again"
    owner = "" if "/" in name else "; names on the hub are owner/model, like microsoft/trocr-base-printed"
    raise FilesError(f"{name}: {reason}{owner}")


def _why_unreachable() -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "not in the local cache, and HF_HUB_OFFLINE forbids to download it; unset it or pass a local directory"
    return f"not in the local cache, and {constants.ENDPOINT} cannot be reached; pass a local directory or try again"


# --- reading ---


def read_json(path: Path | str, limit: float = JSON_LIMIT) -> dict[str, Any]:
    """A json object of up to `limit` bytes.

    Raises:
        FilesError: absent, too large, not json, or not an object.
    """
    path = Path(path)
    if path.is_file() and path.stat().st_size > limit:
        raise FilesError(f"{path}: too large for a json file of a model")
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise FilesError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        place = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise FilesError(f"{path}: not valid json{place}") from None
    if not isinstance(content, dict):
        raise FilesError(f"{path}: holds no json object")
    return content


def read_preprocessor(directory: Path | str) -> dict[str, Any]:
    """A model directory's image preprocessing: `preprocessor_config.json`, or where transformers 5 keeps it.

    Raises:
        FilesError: there is neither.
    """
    directory = Path(directory)
    combined = directory / "processor_config.json"
    if combined.is_file() and not (directory / "preprocessor_config.json").is_file():
        section = read_json(combined).get("image_processor")
        if isinstance(section, dict):
            return section
    return read_json(directory / "preprocessor_config.json")


# --- writing ---


def write_atomically(path: Path | str, data: bytes) -> None:
    """Replaces a file in one step: after a crash there is the old one or the new one, whole.

    Raises:
        FilesError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise FilesError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        with suppress(OSError):  # whatever is wrong with its folder has been said
            temporary.unlink()


def _temporary(path: Path) -> Path:
    """A hidden name beside a path's own, of which it holds the beginning: a name may be as long as names can be."""
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}")


@contextmanager
def new_directory(path: Path | str, replace: bool = False) -> Iterator[Path]:
    """A directory to fill, which appears under its name, whole and with a manifest, only when the block ends well.

    Args:
        replace: whether it takes the place of a directory that is there, which stays until then.

    Raises:
        FilesError: the path exists and is not empty (with `replace`: is a file), or cannot be written.
    """
    path = expand(path).resolve()
    if not (replace and path.is_dir()):
        check_free(path)
    temporary = _temporary(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        write_manifest(temporary)
        for folder, _, names in os.walk(temporary):
            for name in [*names, "."]:
                _sync(Path(folder, name))
        _put(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise FilesError(f"{path}: cannot be written ({error.strerror or type(error).__name__})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put(new: Path, path: Path) -> None:
    """Gives a directory its name. One that has it is renamed before, as no directory takes the place of a full one."""
    if not path.exists():
        return os.replace(new, path)
    old = new.with_name(f"{new.name}.old")
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_free(path: Path) -> None:
    """Refuses to write over anything.

    Raises:
        FilesError: the path is a file, or a directory with something in it.
    """
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists():
        raise FilesError(f"{path}: exists and is not empty; choose another place or remove it")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- the manifest ---


def write_manifest(directory: Path) -> None:
    """`manifest.json`: size and sha256 of every file below the directory."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = {path.relative_to(directory).as_posix(): _digest(path) for path in files}
    write_json(directory / MANIFEST, {"files": entries})


def check_manifest(directory: Path | str) -> None:
    """Compares every file with the manifest; without a manifest (a directory from the hub) there is nothing to compare.

    Raises:
        FilesError: files are missing or differ; all of them are named.
    """
    directory = Path(directory)
    if not (directory / MANIFEST).exists():
        return
    entries = read_json(directory / MANIFEST).get("files")
    if not isinstance(entries, dict):
        raise FilesError(f"{directory / MANIFEST}: damaged, it lists no files")
    damaged = []
    for name, expected in entries.items():
        path = directory / name
        if path == directory or Path(name).is_absolute() or ".." in Path(name).parts:
            raise FilesError(f"{directory / MANIFEST}: names {name!a}, which is not a file of the directory")
        if not path.is_file():
            damaged.append(f"{name} is missing")
        elif _digest(path) != expected:
            damaged.append(f"{name} is damaged")
    if damaged:
        remedy = f"copy or convert it again, or delete {MANIFEST} if you changed the files yourself"
        raise FilesError(f"{directory}: {', '.join(damaged)} (compared with {MANIFEST}); {remedy}")


def _digest(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}
