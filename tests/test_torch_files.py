"""Files that torch wrote are read without torch, equal to torch; hostile and damaged ones run nothing."""

import argparse
import collections
import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch
from conftest import ROOT

from trocr_jax.checkpoints import torch_files
from trocr_jax.checkpoints.torch_files import LEGACY_MAGIC, LEGACY_PROTOCOL, TorchFileError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
]  # fmt: skip


def example():
    """Every dtype, and every way in which a tensor is not simply a contiguous array."""
    torch.manual_seed(0)
    base = torch.randn(6, 5)
    tensors = collections.OrderedDict((f"dtype.{i}", (base * 50).to(dtype)) for i, dtype in enumerate(DTYPES))
    tensors |= {"transposed": base.t(), "strided": base[::2, 1:4], "tied": base}
    tensors |= {"expanded": torch.arange(4).expand(1, -1)}
    return tensors | {"scalar": torch.tensor(3), "empty": torch.empty(0, 7), "parameter": torch.nn.Parameter(base)}


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()


def save(content, path, legacy=False):
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_tensors_equal_torch(tmp_path, legacy):
    tensors = example()
    found = torch_files.state_dict(torch_files.load(save(tensors, tmp_path / "model.bin", legacy)), "model.bin")
    assert list(found) == list(tensors)
    for name, tensor in found.items():
        expected, array = as_numpy(tensors[name]), np.asarray(tensor)
        assert (array.dtype, array.shape, tensor.shape) == (expected.dtype, expected.shape, expected.shape), name
        assert array.tobytes() == expected.tobytes(), name
        assert not array.flags.writeable


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_state_dict_of_a_module(tmp_path, legacy):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    content = torch_files.load(save(module.state_dict(), tmp_path / "m.bin", legacy))
    assert list(content) == list(module.state_dict())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(tmp_path, protocol):
    torch.save({"a": torch.ones(3)}, tmp_path / "m.bin", pickle_protocol=protocol)
    np.testing.assert_array_equal(torch_files.load(tmp_path / "m.bin")["a"], np.ones(3))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_fairseq_bookkeeping_becomes_inert_records(tmp_path, legacy):
    """What stands beside the tensors in a fairseq checkpoint: a Namespace, enums, nested dicts, a numpy scalar."""
    content = {
        "args": argparse.Namespace(arch="trocr_base", decoder_layers=12),
        "model": {"w": torch.ones(2)},
        "extra_state": {"best": np.float64(1.5), "lr": 1e-5, "name": "é", "none": None, "flags": [True, (1, 2, 3, 4)]},
        "numbers": [1 << 40, -(1 << 40), False],
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(2)}}},
    }
    found = torch_files.load(save(content, tmp_path / "c.pt", legacy))
    assert (found["args"].kind, found["args"].state) == ("argparse.Namespace", vars(content["args"]))
    assert found["extra_state"]["flags"] == [True, (1, 2, 3, 4)] and found["extra_state"]["name"] == "é"
    assert found["numbers"] == content["numbers"]
    assert list(torch_files.state_dict(found, "c.pt")) == ["w"]


def test_a_view_whose_numbers_are_to_be_negated_is_refused(tmp_path):
    """It is stored as it was before: read plainly, every number would have the wrong sign."""
    torch.save({"a": torch.tensor([1 + 1j]).conj().imag}, tmp_path / "m.bin")
    with pytest.raises(TorchFileError, match="negated or conjugated view"):
        torch_files.load(tmp_path / "m.bin")


def test_reading_is_lazy(tmp_path):
    """Opening 64 MB and looking at shapes must not copy them."""
    torch.save({"a": torch.zeros(16 << 20)}, tmp_path / "big.bin")
    tensor = torch_files.load(tmp_path / "big.bin")["a"]
    first, second = np.asarray(tensor), np.asarray(tensor)
    assert np.shares_memory(first, second)


def global_(path: str) -> bytes:
    module, name = path.rsplit(".", 1)
    return f"c{module}\n{name}\n".encode()


def call(path: str, *args: str) -> bytes:
    strings = b"".join(b"X" + struct.pack("<I", len(a)) + a.encode() for a in args)
    return b"\x80\x02" + global_(path) + b"(" + strings + b"tR."


def storage(kind=b"Float", key=b"0", count=b"K\x04") -> bytes:
    key = b"X" + struct.pack("<I", len(key)) + key
    return b"(X\x07\x00\x00\x00storagectorch\n" + kind + b"Storage\n" + key + b"X\x03\x00\x00\x00cpu" + count + b"tQ"


STORAGE = storage()
REBUILD = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
TENSOR = REBUILD + STORAGE + b"K\x00K\x04\x85K\x01\x85\x89}tR"
CALLS = (
    "posix.system os.system nt.system subprocess.Popen subprocess.call subprocess.check_output builtins.eval "
    "builtins.exec builtins.compile __builtin__.eval builtins.open builtins.__import__ builtins.getattr "
    "importlib.import_module runpy.run_path shutil.rmtree socket.create_connection urllib.request.urlopen "
    "webbrowser.open pickle.loads torch.load torch.hub.load torch.storage._load_from_bytes pty.spawn pip.main "
    "code.interact timeit.timeit pydoc.locate operator.attrgetter functools.partial ctypes.CDLL numpy.load "
    "_pickle.Unpickler bdb.Bdb cProfile.run copyreg._reconstructor types.FunctionType trocr_jax.files.resolve "
    "argparse.Namespace.__init__.__globals__ collections.OrderedDict.fromkeys fairseq/../os.system"
).split()
HARMLESS = ("memo index of 4 billion", "half a million nested lists")  # without tensors, and read in no time
CRAFTED = {
    "memo index of 4 billion": b"\x80\x02}r\xff\xff\xff\xff.",
    "string of 2^63 bytes": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.",
    "number of 255 bytes cut short": b"\x80\x02\x8a\xff1",
    "attributes set on a class": b"\x80\x02" + global_("argparse.Namespace") + b"}X\x01\x00\x00\x00aK\x01sb.",
    "attributes set on a function": b"\x80\x02" + REBUILD[2:-1] + b"}X\x01\x00\x00\x00aK\x01sb.",
    "items set on a class": b"\x80\x02" + global_("collections.OrderedDict") + b"X\x01\x00\x00\x00aK\x01s.",
    "tuple as a dict key": b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"K\x01s.",
    "tensor outside its storage": REBUILD + STORAGE + b"K\x01K\x04\x85K\x01\x85\x89}tR.",
    "tensor at a negative offset": REBUILD + STORAGE + b"J\xff\xff\xff\xffK\x04\x85K\x01\x85\x89}tR.",
    "tensor of terabytes": REBUILD + STORAGE + b"K\x00" + b"J\xff\xff\xff\x7f" * 2 + b"\x86K\x00K\x00\x86\x89}tR.",
    "tensor with a huge stride": REBUILD + STORAGE + b"K\x00K\x04\x85\x8a\x0a" + b"\xff" * 9 + b"\x00\x85\x89}tR.",
    "empty tensor with huge sides": REBUILD + STORAGE + b"K\x00(K\x00" + b"J\xff\xff\xff\x7f" * 2 + b"t(K\x01K\x01K\x01t\x89}tR.",
    "tensor with a boolean size": REBUILD + STORAGE + b"K\x00\x88\x85K\x01\x85\x89}tR.",
    "tensor of a list as storage": REBUILD + b"]K\x00K\x04\x85K\x01\x85\x89}tR.",
    "tensor of a list as shape": REBUILD + STORAGE + b"K\x00]K\x04aK\x01\x85\x89}tR.",
    "storage of a negative size": b"\x80\x02" + storage(count=b"J\xff\xff\xff\xff") + b".",
    "storage of a fractional size": b"\x80\x02" + storage(count=b"G" + struct.pack(">d", 4.0)) + b".",
    "storage outside the archive": b"\x80\x02" + storage(key=b"../../etc") + b".",
    "storage of another size": b"\x80\x02" + storage(kind=b"Double", count=b"K\x05") + b".",
    "unknown storage type": b"\x80\x02ctorch\nEvilStorage\n.",
    "empty stack": b"\x80\x02.",
    "no end": b"\x80\x02}",
    "unknown operation": b"\x80\x02\xff.",
    "extension registry": b"\x80\x02\x82\x01.",
    "text protocol instance": b"(i__main__\nX\n.",
    "half a million nested lists": b"\x80\x02" + b"](" * 500_000 + b".",
    "a long name": b"\x80\x02c" + b"a" * 100_000 + b"\nb\n.",
    "a pickle of 5 MB": b"\x80\x02" + b"N" * (5 << 20) + b"}.",
    "tensor of 65 sides": REBUILD + STORAGE + b"K\x00" + 2 * (b"(" + b"K\x01" * 65 + b"t") + b"\x89}tR.",
    "dict key of 33 bits": b"\x80\x02}\x8a\x05\x00\x00\x00\x00\x01K\x01s.",
}  # fmt: skip


def zip_file(pickled: bytes, compression=zipfile.ZIP_STORED, byteorder="little") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr("archive/byteorder", byteorder)
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", b"\0" * 16)
    return out.getvalue()


def legacy_file(pickled: bytes, magic=LEGACY_MAGIC, protocol=LEGACY_PROTOCOL, little_endian=True, keys=("0",)) -> bytes:
    head = (magic, protocol, {"little_endian": little_endian})
    parts = [*(pickle.dumps(part, 2) for part in head), pickled, pickle.dumps(list(keys), 2)]
    return b"".join(parts) + struct.pack("<q", 4) + b"\0" * 16


# Runs in its own process, since an audit hook stays for ever: reads every file and reports what happened.
READER = """
import json, pathlib, re, sys, time
sys.modules["torch"] = None
import numpy as np
from trocr_jax.checkpoints import torch_files
import encodings.cp437  # zipfile decodes names with it
events, reading = [], False
HARMLESS = ("open", "mmap.__new__", "object.__getattr__", "sys._getframe", "builtins.id")
def hook(event, args):
    if reading and (event not in HARMLESS or (event == "open" and (args[1] not in ("r", "rb", None)))):
        events.append(f"{event} {args!r}"[:200])
sys.addaudithook(hook)
outcomes = {}
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    start, reading = time.process_time(), True
    content = None
    try:
        content = torch_files.load(path)
        tensors = torch_files.state_dict(content, path)
        outcome = "read " + str([(n, t.shape, str(t.dtype), hash(np.asarray(t).tobytes())) for n, t in tensors.items()])
    except torch_files.TorchFileError as error:
        outcome = ("refused " if content is None else "without tensors ") + str(error)
    except BaseException as error:
        outcome = "crashed " + repr(error)[:300]
    reading = False
    outcomes[path.name] = [outcome, time.process_time() - start]
peak = re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]
print(json.dumps([outcomes, events, int(peak)]))
"""


def read_all(folder):
    command = [sys.executable, "-c", READER, str(folder)]
    environment = {"PYTHONHASHSEED": "0", "PATH": ""}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_hostile_pickles_run_nothing(tmp_path):
    hostile = {name: call(name, "touch ran") for name in CALLS} | CRAFTED
    assert len(hostile) > 60
    for i, pickled in enumerate(hostile.values()):
        (tmp_path / f"{i:03}.zip").write_bytes(zip_file(pickled))
        (tmp_path / f"{i:03}.legacy").write_bytes(legacy_file(pickled))
    outcomes, events, peak = read_all(tmp_path)
    assert events == []
    assert peak < 600 << 10, f"{peak} kB at the peak"
    for name, (outcome, seconds) in outcomes.items():
        what = list(hostile)[int(name[:3])]
        assert outcome.startswith(("refused ", "without tensors ") if what in HARMLESS else "refused "), (what, outcome)
        assert "\n" not in outcome and name in outcome, (what, outcome)
        assert seconds < 10, what
        assert what not in CALLS or "no file of weights needs" in outcome, (what, outcome)
    assert len(list(tmp_path.iterdir())) == 2 * len(hostile)  # nothing was made


def test_the_crafted_parts_are_fine_when_honest(tmp_path):
    """The hostile files above differ from a good one by their hostility alone."""
    for make in (zip_file, legacy_file):
        (tmp_path / "m.bin").write_bytes(make(b"\x80\x02}X\x01\x00\x00\x00w" + TENSOR[2:] + b"s."))
        np.testing.assert_array_equal(torch_files.load(tmp_path / "m.bin")["w"], np.zeros(4))


def test_mutated_files_are_refused_or_read_the_same(tmp_path):
    """1,000 damaged files. The zip format has checksums; the legacy one has none, so there numbers may differ."""
    rng = np.random.default_rng(0)
    model = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5)}
    content = {"model": model, "args": argparse.Namespace(x=1)}
    files = tmp_path / "files"
    files.mkdir()
    for legacy in (False, True):
        good = save(content, tmp_path / "good.pt", legacy).read_bytes()
        (files / f"{legacy}-good").write_bytes(good)
        for i in range(500):
            (files / f"{legacy}-{i}").write_bytes(mutate(good, rng))
    outcomes, events, _ = read_all(files)
    assert events == []
    assert not [o for o, _ in outcomes.values() if o.startswith("crashed")]
    assert max(seconds for _, seconds in outcomes.values()) < 5
    read = [name for name, (outcome, _) in outcomes.items() if outcome.startswith("read")]
    assert all(outcomes[name][0] == outcomes["False-good"][0] for name in read if name.startswith("False"))
    assert len(read) < 500 and all("\n" not in outcome for outcome, _ in outcomes.values())


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One of: a bit flipped, a byte changed, cut short, a block deleted, doubled or zeroed."""
    kind, i = rng.integers(6), int(rng.integers(len(data)))
    j = min(len(data), i + int(rng.integers(1, 40)))
    changed = [
        data[:i] + bytes([data[i] ^ (1 << int(rng.integers(8)))]) + data[i + 1 :],
        data[:i] + bytes([int(rng.integers(256))]) + data[i + 1 :],
        data[:i], data[:i] + data[j:], data[:j] + data[i:], data[:i] + b"\0" * (j - i) + data[j:],
    ]  # fmt: skip
    return changed[kind]


def test_zip_traps(tmp_path):
    """Compressed members, members that share bytes, two of a name, and zips of something else."""
    good = zip_file(TENSOR + b".")
    twice = io.BytesIO()
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(twice, "w") as archive:
        for _ in range(2):
            archive.writestr("archive/data.pkl", TENSOR + b".")
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("word/document.xml", "x")
    two = io.BytesIO()
    with zipfile.ZipFile(two, "w") as archive:
        for root in ("one", "other"):
            archive.writestr(f"{root}/data.pkl", TENSOR + b".")
    overlapping = bytearray(good)
    directory = good.index(b"PK\x01\x02")
    overlapping[directory + 20 : directory + 28] = struct.pack("<II", len(good), len(good))
    cases = {
        "compressed": zip_file(TENSOR + b".", zipfile.ZIP_DEFLATED), "same name": twice.getvalue(),
        "not one that torch.save wrote": other.getvalue(), "overlapping": bytes(overlapping), "is empty": b"",
        "damaged": b"PK\x03\x04" + b"\0" * 50,
    }  # fmt: skip
    for reason, data in (*cases.items(), ("not one that torch.save wrote", two.getvalue())):
        (tmp_path / "x.bin").write_bytes(data)
        with pytest.raises(TorchFileError, match=reason):
            torch_files.load(tmp_path / "x.bin")


def test_files_that_are_nearly_those_of_torch(tmp_path):
    twice = b"\x80\x02(" + STORAGE + storage(kind=b"Double", count=b"K\x02") + b"t."
    cases = {
        "described in two ways": [zip_file(twice), legacy_file(twice)],
        "list of storages is inconsistent": [
            legacy_file(TENSOR + b".", keys=[{}, {}]), legacy_file(TENSOR + b".", keys=()),
            legacy_file(b"\x80\x02" + storage(count=b"K\x03") + b"."),
        ],
        "storages that are views of others": [legacy_file(b"\x80\x02" + STORAGE[:-2] + b")tQ.")],
        "not a PyTorch checkpoint": [legacy_file(TENSOR + b".", magic=1), legacy_file(TENSOR + b".", protocol=1002)],
        "big-endian": [legacy_file(TENSOR + b".", little_endian=False), zip_file(TENSOR + b".", byteorder="big")],
    }  # fmt: skip
    for reason, contents in cases.items():
        for data in contents:
            (tmp_path / "x.bin").write_bytes(data)
            with pytest.raises(TorchFileError, match=reason):
                torch_files.load(tmp_path / "x.bin")


def test_a_zip_directory_larger_than_any_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "x.bin").write_bytes(zip_file(TENSOR + b"."))
    torch_files.load(tmp_path / "x.bin")
    monkeypatch.setattr(torch_files, "DIRECTORY_LIMIT", 100)
    with pytest.raises(TorchFileError, match="zip directory is too large"):
        torch_files.load(tmp_path / "x.bin")


def test_more_objects_than_a_short_number_counts(tmp_path):
    """A pickle refers to what it has said before by a number of one byte or of four."""
    names = [f"parameter {i}" for i in range(70_000)]
    (tmp_path / "x.bin").write_bytes(zip_file(pickle.dumps([*names, *names], 2)))
    assert torch_files.load(tmp_path / "x.bin") == [*names, *names]


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_tensors_may_lie_under_a_key(tmp_path, key):
    path = save({"epoch": 3, key: {"w": torch.ones(1)}}, tmp_path / "x.pt")
    assert list(torch_files.state_dict(torch_files.load(path), path)) == ["w"]


def test_what_is_not_a_file_of_tensors(tmp_path):
    cases = {"no named tensors": [1], "'epoch' is not a tensor": {"w": torch.ones(1), "epoch": 3}}
    for reason, content in cases.items():
        path = save(content, tmp_path / "x.pt")
        with pytest.raises(TorchFileError, match=reason):
            torch_files.state_dict(torch_files.load(path), path)
    for path, reason in ((tmp_path / "absent.pt", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(TorchFileError, match=reason):
            torch_files.load(path)
