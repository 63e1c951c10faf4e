"""What the tests of batch jobs share: drawn images in every container, and jobs run here or in processes of their own."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import tiny

from trocr_jax import cli

OPTIONS = ["--max-tokens", "6", "--decoders", "1"]


def png(text: str) -> bytes:
    buffer = io.BytesIO()
    tiny.draw(text).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(count: int, seed: int = 0) -> dict[str, bytes]:
    """Name -> PNG."""
    return {f"{number:05d}.png": png(text) for number, text in enumerate(tiny.texts(count, seed))}


def folder(place: Path, images: dict[str, bytes]) -> Path:
    for name, content in images.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


def tar(path: Path, images: dict[str, bytes], mode: str = "w") -> Path:
    """As webdataset has it: an image and its label a sample."""
    with tarfile.open(path, mode) as archive:
        for name, content in images.items():
            for member, data in ((name, content), (name.replace(".png", ".txt"), b"label")):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def parquet(path: Path, images: dict[str, bytes], group: int = 4, **columns) -> Path:
    import pyarrow
    import pyarrow.parquet

    rows = [{"bytes": content, "path": name} for name, content in images.items()]
    pyarrow.parquet.write_table(pyarrow.table({"image": rows, **columns}), path, row_group_size=group)
    return path


def lmdb(path: Path, images: dict[str, bytes]) -> Path:
    import lmdb

    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"num-samples", str(len(images)).encode())
        for number, content in enumerate(images.values(), 1):
            transaction.put(f"image-{number:09d}".encode(), content)
    return path


def batch(capsys, *arguments, options=OPTIONS) -> tuple[int, dict, str]:
    """Exit code, the last JSON line (empty without one), stderr."""
    try:
        code = cli.main(["batch", *map(str, arguments), *options])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, json.loads(out.splitlines()[-1]) if out else {}, err


def worker(source: Path, out: Path, *arguments) -> subprocess.Popen:
    """A worker that can be killed."""
    command = [sys.executable, "-m", "trocr_jax.cli", "batch", str(source), str(out), *map(str, arguments), *OPTIONS]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def kill(process: subprocess.Popen) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("part-*"))}


def rows(out: Path) -> list[dict]:
    """All rows in order."""
    if any(out.glob("*.parquet")):
        import pyarrow.parquet

        return [row for path in sorted(out.glob("*.parquet")) for row in pyarrow.parquet.read_table(path).to_pylist()]
    return [json.loads(line) for content in parts(out).values() for line in content.decode().splitlines()]
