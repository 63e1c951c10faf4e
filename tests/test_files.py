"""Model directories: found locally and on a stand-in of the hub, read lazily, written atomically, damage noticed."""

import http.server
import json
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import unquote

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import ROOT

from trocr_jax import files
from trocr_jax.checkpoints import tensor_files
from trocr_jax.files import FilesError

ARRAYS = {
    "a": np.arange(6, dtype="f4").reshape(2, 3),
    "half": np.arange(4, dtype="f2"),
    "bf16": np.arange(4).astype(ml_dtypes.bfloat16),
    "scalar": np.array(3, "f4"),
}


# --- the hub ---


class Hub(http.server.BaseHTTPRequestHandler):
    """What `huggingface_hub.snapshot_download` asks the hub, for a few repositories held in memory."""

    repositories: dict[str, dict[str, bytes]] = {}
    requested: list[str] = []
    commits = {"main": "a" * 40, "refs/pr/3": "c" * 40}

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/")
        self.requested.append(path)
        parts = unquote(path.removeprefix("api/models/")).split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        sha = self.commits["main"] if not rest else self.commits.get("/".join(rest[1:]), rest[1])
        found = self.repositories.get(f"{name}@{sha[0]}", self.repositories.get(name))
        if name == "them/gated":
            return self.answer(403, X_Error_Code="GatedRepo")
        if name == "them/broken":
            return self.answer(500)
        if found is None:
            return self.answer(404, X_Error_Code="RepoNotFound")
        if sha not in self.commits.values():
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if not path.startswith("api/"):
            content = found["/".join(rest[2:])]
            return self.answer(200, content, ETag=f'"{hash(content):x}"', X_Repo_Commit=sha)
        if rest and rest[0] == "tree":
            entries = [{"type": "file", "path": p, "size": len(c), "oid": "b" * 40} for p, c in found.items()]
            return self.answer(200, json.dumps(entries).encode(), Content_Type="application/json")
        info = {"id": name, "sha": sha, "siblings": [{"rfilename": p} for p in found]}
        return self.answer(200, json.dumps(info).encode(), Content_Type="application/json")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub():
    safe, pickled = {"config.json": b"{}", "README.md": b"x"}, b"weights"
    Hub.repositories = {
        "them/safe": {
            **safe,
            "model.safetensors": b"s",
            "pytorch_model.bin": pickled,
            "tf_model.h5": b"t",
            "vocab.json": b"{}",
            "merges.txt": b"m",
        },
        "them/pickled": {**safe, "pytorch_model.bin": pickled, "sentencepiece.bpe.model": b"p", "optimizer.pt": b"o"},
        "them/safe@c": {**safe, "model.safetensors": b"of the pull request"},
        "them/orbax": {**safe, "orbax/state/d/1": b"1", "manifest.json": b"{}"},
    }
    Hub.requested = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


RESOLVE = """
import json, sys
from trocr_jax import files
out = []
for name in sys.argv[1:]:
    try:
        path = files.resolve(name)
        out.append(sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()))
    except files.FilesError as error:
        out.append(str(error))
print(json.dumps(out))
"""


def resolve(home: Path, endpoint: str, *names: str, offline: bool = False) -> list:
    """`files.resolve` in a process of its own: the hub client reads its settings when it is imported."""
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": str(int(offline))}
    environment = {**os.environ, **settings, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", RESOLVE, *names]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_hub_names_are_downloaded_cached_and_found_offline(tmp_path, hub):
    names = ("them/safe", "them/pickled", "them/orbax")
    expected = [
        ["config.json", "merges.txt", "model.safetensors", "vocab.json"],
        ["config.json", "pytorch_model.bin", "sentencepiece.bpe.model"],
        ["config.json", "manifest.json", "orbax/state/d/1"],
    ]
    assert resolve(tmp_path, hub, *names) == expected
    assert not [path for path in Hub.requested if path.endswith((".md", ".h5", "optimizer.pt"))]
    assert not [path for path in Hub.requested if "safe" in path and path.endswith(".bin")]
    assert resolve(tmp_path, hub, *names, offline=True) == expected
    assert resolve(tmp_path, "http://127.0.0.1:9", *names) == expected  # the network went away


def test_hub_failures_are_one_line_each(tmp_path, hub):
    absent, gated, broken, invalid = resolve(tmp_path, hub, "them/absent", "them/gated", "them/broken", "them/a--b")
    assert absent == "them/absent: no such directory here and no such model on the hub (a private one needs HF_TOKEN)"
    assert gated == "them/gated: the hub wants you to accept its terms and to set HF_TOKEN"
    assert broken.startswith("them/broken: ") and "\n" not in broken
    assert invalid == "them/a--b: no such directory here, and not a valid hub name"
    (unreachable,) = resolve(tmp_path, "http://127.0.0.1:9", "them/absent")
    assert "http://127.0.0.1:9 cannot be reached" in unreachable and "\n" not in unreachable
    (offline,) = resolve(tmp_path, hub, "them/absent", offline=True)
    assert "HF_HUB_OFFLINE" in offline and "\n" not in offline


def test_a_revision_stands_behind_the_name(tmp_path, hub):
    names = ("them/safe@refs/pr/3", f"them/safe@{'c' * 40}")
    assert resolve(tmp_path, hub, *names) == 2 * [["config.json", "model.safetensors"]]
    assert resolve(tmp_path, hub, *names, offline=True) == 2 * [["config.json", "model.safetensors"]]
    main, absent, pickled = resolve(tmp_path, hub, "them/safe@main", "them/safe@v9", f"them/pickled@{'c' * 40}")
    assert main == ["config.json", "merges.txt", "model.safetensors", "vocab.json"]
    assert absent == "them/safe@v9: the hub has this model, but no such commit, tag or branch of it"
    assert pickled == ["config.json", "pytorch_model.bin", "sentencepiece.bpe.model"]
    (lost,) = resolve(tmp_path, hub, "them/safe@v9", offline=True)
    assert "HF_HUB_OFFLINE" in lost and lost.startswith("them/safe@v9: ")


def test_a_path_with_an_at_sign_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "them" / "safe@main").mkdir(parents=True)
    assert files.resolve("them/safe@main") == Path("them/safe@main")
    for name in ("them/safe@", "@main", "them/safe@../x", "them/safe@a/../b", "them/safe@-x", "step@3.pt", Path("them/safe@v1")):
        with pytest.raises(FilesError, match="no such file or directory, and not a hub name"):
            files.resolve(name)


def test_homes_of_nobody():
    for use in (files.resolve, lambda path: files.new_directory(path).__enter__()):
        with pytest.raises(FilesError, match="^~nobody9/x: no such file or directory, ~nobody9 is nobody's home$"):
            use("~nobody9/x")


def test_paths(tmp_path):
    assert files.resolve(tmp_path) == tmp_path and files.resolve(str(tmp_path)) == tmp_path
    assert files.resolve(None).name == "tiny-print"
    for name in ("./absent", "/no/such/place", "~/no/such/place", "a/b/c", "weights.pt", Path("owner/name"), ""):
        with pytest.raises(FilesError, match="no such file or directory, and not a hub name"):
            files.resolve(name)


# --- reading ---


def test_json_failures(tmp_path):
    cases = {"cannot be read": None, "line 2": b'{"a": 1,\n oops}', "not valid json": b"\xff\xfe\x00", "no json object": b"[1]"}
    for reason, content in cases.items():
        path = tmp_path / "x.json"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(FilesError, match=reason):
            files.read_json(path)
    path.write_bytes(b"[" * 200_000)
    with pytest.raises(FilesError, match="not valid json"):
        files.read_json(path)


def test_preprocessor_of_either_transformers(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"resample": 2}}))
    assert files.read_preprocessor(tmp_path) == {"resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"resample": 3}))
    assert files.read_preprocessor(tmp_path) == {"resample": 3}
    with pytest.raises(FilesError, match="preprocessor_config.json"):
        files.read_preprocessor(tmp_path / "absent")


def equal(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype)
        assert np.asarray(tensors[name]).tobytes() == array.tobytes(), name


def shards(folder: Path, weight_map: dict[str, str], kind: str = "safetensors") -> None:
    stem = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    (folder / f"{stem}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for file in set(weight_map.values()):
        part = {name: ARRAYS[name] for name in weight_map if weight_map[name] == file}
        if kind == "safetensors":
            safetensors.numpy.save_file(part, folder / file)
        else:
            torch.save({name: torch.from_numpy(array.copy()) for name, array in part.items()}, folder / file)


def test_every_kind_of_weight_file(tmp_path):
    for kind in ("one", "shards", "torch", "torch-shards"):
        (tmp_path / kind).mkdir()
    plain = {name: array for name, array in ARRAYS.items() if name != "bf16"}
    tensor_files.write_safetensors(tmp_path / "one" / "model.safetensors", ARRAYS)
    shards(tmp_path / "shards", {"a": "model-1.safetensors", "half": "model-2.safetensors", "bf16": "model-2.safetensors"})
    torch.save({n: torch.from_numpy(x.copy()) for n, x in plain.items()}, tmp_path / "torch" / "pytorch_model.bin")
    shards(tmp_path / "torch-shards", {"a": "w-1.bin", "half": "w-2.bin"}, "bin")
    equal(tensor_files.open_tensors(tmp_path / "one"), ARRAYS)
    equal(tensor_files.open_tensors(tmp_path / "one" / "model.safetensors"), ARRAYS)
    equal(tensor_files.open_tensors(tmp_path / "shards"), {name: ARRAYS[name] for name in ("a", "half", "bf16")})
    equal(tensor_files.open_tensors(tmp_path / "torch"), plain)
    equal(tensor_files.open_tensors(tmp_path / "torch-shards"), {name: ARRAYS[name] for name in ("a", "half")})


def test_no_weights(tmp_path):
    with pytest.raises(FilesError, match="holds no weights; expected one of model.safetensors"):
        tensor_files.open_tensors(tmp_path)
    with pytest.raises(FilesError, match=r"absent\.safetensors: cannot be read"):
        tensor_files.open_tensors(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("name", [
    "../x.safetensors", "/etc/passwd", "sub/x.safetensors", "x.pickle", "..", "", ".hidden.bin", "x.bin/../../y.bin",
])  # fmt: skip
def test_a_shard_cannot_lie_elsewhere(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(FilesError, match="expected a plain file name"):
        tensor_files.open_tensors(tmp_path)


def test_shards_that_do_not_fit_their_index(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    shards(tmp_path, {"a": "m-1.safetensors", "half": "m-2.safetensors"})
    index.write_text(json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-1.safetensors"}}))
    with pytest.raises(FilesError, match="does not hold what"):
        tensor_files.open_tensors(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-3.safetensors"}}))
    with pytest.raises(FilesError, match="m-3.safetensors that .* names is missing"):
        tensor_files.open_tensors(tmp_path)
    safetensors.numpy.save_file({name: ARRAYS[name] for name in ("a", "half")}, tmp_path / "m-2.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "m-1.safetensors", "half": "m-2.safetensors"}}))
    with pytest.raises(FilesError, match="m-2.safetensors: does not hold what .* mixed up"):
        tensor_files.open_tensors(tmp_path)
    for nothing in ([], {}, None):
        index.write_text(json.dumps({"weight_map": nothing}))
        with pytest.raises(FilesError, match="no weight_map"):
            tensor_files.open_tensors(tmp_path)


def test_damaged_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    tensor_files.write_safetensors(path, ARRAYS)
    good = path.read_bytes()
    for bad in (b"", good[:20], good[:-1], good + b"x", b"\xff" * 8 + good[8:], good.replace(b"F32", b"F99")):
        path.write_bytes(bad)
        with pytest.raises(FilesError, match="not a safetensors file, or damaged") as error:
            tensor_files.open_tensors(path)
        assert "\n" not in str(error.value)


def test_a_type_of_numbers_that_is_not_known_is_named(tmp_path):
    header = json.dumps({"w": {"dtype": "F8_E5M2", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    with pytest.raises(FilesError, match="tensor 'w' has the unsupported type F8_E5M2"):
        tensor_files.open_tensors(tmp_path / "x.safetensors")


# --- writing ---


def test_weights_may_be_read_by_whoever_may_read_other_files(tmp_path):
    (tmp_path / "other").touch()
    tensor_files.write_safetensors(tmp_path / "x.safetensors", ARRAYS)
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    failing = Mock(side_effect=safetensors.SafetensorError("I/O error: No space left on device"))
    monkeypatch.setattr(safetensors.numpy, "save_file", failing)
    with pytest.raises(FilesError, match="x.safetensors: cannot be written; is the disk full"):
        tensor_files.write_safetensors(tmp_path / "x.safetensors", ARRAYS)


def test_what_is_the_same_has_one_type_and_the_same_bits():
    nan, zero = np.array([np.nan], "f4"), np.zeros(1, "f4")
    assert tensor_files.same(nan, nan.copy())
    assert not tensor_files.same(zero, -zero) and not tensor_files.same(zero, zero.view("i4"))


def test_strided_arrays_are_written_right(tmp_path):
    """safetensors 0.8.0 writes the numbers of a transposed array in the wrong order."""
    base = np.arange(24, dtype="f4").reshape(4, 6)
    strided = {"transposed": base.T, "steps": base[::2, ::3], "reversed": base[::-1], "spread": np.broadcast_to(base, (2, 4, 6))}
    tensor_files.write_safetensors(tmp_path / "x.safetensors", strided)
    equal(tensor_files.open_tensors(tmp_path / "x.safetensors"), strided)


def test_a_write_that_went_wrong_is_noticed(tmp_path, monkeypatch):
    real = safetensors.numpy.save_file
    monkeypatch.setattr(safetensors.numpy, "save_file", lambda arrays, path, metadata: real({"a": arrays["a"] + 1}, path))
    with pytest.raises(FilesError, match="reads back differently .*\\(a\\)"):
        tensor_files.write_safetensors(tmp_path / "x.safetensors", {"a": ARRAYS["a"]})


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "x"
    files.write_atomically(path, b"old")
    files.write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FilesError, match="cannot be written"):
        files.write_atomically(tmp_path / "absent" / "x", b"")


def test_a_name_may_be_as_long_as_names_can_be(tmp_path):
    for name in ("a" * 255, "\u5b57" * 85):
        files.write_atomically(tmp_path / name, b"text")
        assert (tmp_path / name).read_bytes() == b"text"
    with files.new_directory(tmp_path / ("b" * 255)):
        pass
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(files.FilesError, match="name too long"):
        files.write_atomically(tmp_path / ("a" * 256), b"text")
    with pytest.raises(files.FilesError, match="cannot be written"):
        files.write_atomically(tmp_path / ("a" * 255) / "x", b"text")  # its folder is a file


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), files.new_directory(tmp_path / "m") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "m").mkdir()  # an empty one may be there
    with files.new_directory(tmp_path / "m") as folder:
        (folder / "a.txt").write_text("x")
        (folder / "sub").mkdir()
        (folder / "sub" / "b.txt").write_text("y")
        assert list((tmp_path / "m").iterdir()) == []
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["a.txt", "manifest.json", "sub"]
    assert list(tmp_path.iterdir()) == [tmp_path / "m"]


def test_a_directory_stays_until_another_one_takes_its_place(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "old").write_text("x")

    def write(name: str) -> None:
        with files.new_directory(tmp_path / "m", replace=True) as folder:
            (folder / name).write_text("y")
            assert (tmp_path / "m" / "old").exists()
            if name == "half":
                raise RuntimeError

    def content() -> list[str]:
        assert list(tmp_path.iterdir()) == [tmp_path / "m"]
        return sorted(path.name for path in (tmp_path / "m").iterdir())

    with pytest.raises(RuntimeError):
        write("half")
    assert content() == ["old"]
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: rename(a, b) if (Path(a) / "old").exists() else rename(a, "/dev/null"))
    with pytest.raises(FilesError, match="m: cannot be written"):
        write("new")
    monkeypatch.undo()
    assert content() == ["old"], "the old one is put back"
    write("new")
    assert content() == ["manifest.json", "new"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(FilesError, match="exists and is not empty"), files.new_directory(tmp_path / "file", replace=True):
        pass


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "file").write_text("x")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(FilesError, match="exists and is not empty"), files.new_directory(taken):
            pass
    with pytest.raises(FilesError, match="cannot be written"), files.new_directory(tmp_path / "file" / "below"):
        pass


# --- the manifest ---


@pytest.fixture
def saved(tmp_path) -> Path:
    with files.new_directory(tmp_path / "m") as folder:
        (folder / "config.json").write_text("{}")
        (folder / "orbax").mkdir()
        (folder / "orbax" / "data").write_bytes(bytes(1000))
    files.check_manifest(tmp_path / "m")
    return tmp_path / "m"


def test_every_damaged_file_is_named(saved):
    data = bytearray(1000)
    data[500] ^= 1
    (saved / "orbax" / "data").write_bytes(data)
    (saved / "config.json").unlink()
    with pytest.raises(FilesError, match="config.json is missing, orbax/data is damaged") as error:
        files.check_manifest(saved)
    assert "\n" not in str(error.value)


def test_whoever_edited_a_file_learns_what_to_do(saved):
    (saved / "config.json").write_text('{"edited": true}')
    with pytest.raises(FilesError, match="or delete manifest.json if you changed the files yourself$"):
        files.check_manifest(saved)
    (saved / "manifest.json").unlink()
    files.check_manifest(saved)


def test_a_manifest_is_not_trusted(saved):
    for name in ("../outside", "/etc/passwd", ".", ""):
        (saved / "manifest.json").write_text(json.dumps({"files": {name: {}}}))
        with pytest.raises(FilesError, match="not a file of the directory"):
            files.check_manifest(saved)
    (saved / "manifest.json").write_text(json.dumps({"files": 3}))
    with pytest.raises(FilesError, match="lists no files"):
        files.check_manifest(saved)


def test_a_directory_without_manifest_is_fine(saved):
    (saved / "manifest.json").unlink()
    files.check_manifest(saved)
