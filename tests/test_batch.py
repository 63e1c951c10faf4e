"""Batch jobs end to end on a small random model: what they write, what they say, and what they survive."""

import io
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import batching
import numpy as np
import pytest
import tiny
from batching import batch, pictures
from conftest import ROOT

from trocr_jax.prepared import Prepared
from trocr_jax.reader import Reader
from trocr_jax.serve import batch as batch_module
from trocr_jax.serve import decode_rate
from trocr_jax.serve.batch_job import decode as batch_decode
from trocr_jax.serve.batch_job import pipeline as batch_pipeline
from trocr_jax.serve.batch_job import places as batch_places
from trocr_jax.serve.batch_job.places import FetchError, read_file
from trocr_jax.serve.batch_job.prepare import Decoded, decode
from trocr_jax.serve.batch_job.units import Item
from trocr_jax.terminal import UsageError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.model_directory(tmp_path_factory.mktemp("batch") / "model")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return batching.folder(tmp_path_factory.mktemp("lines"), pictures(60))


def test_jsonl_and_parquet_hold_what_the_reader_reads(capsys, model, images, tmp_path):
    paths = sorted(images.iterdir())
    lines = Reader.from_pretrained(model).read(paths, max_new_tokens=6)
    assert len({f"{line.confidence:.3g}" for line in lines}) > 30, "the model must tell the images apart, or this proves nothing"
    for form in ("jsonl", "parquet"):
        out = tmp_path / form
        code, summary, _ = batch(capsys, images, out, "--model", model, "--format", form, "--unit-lines", 25)
        rows = batching.rows(out)
        assert code == 0 and summary["lines"] == 60 and len(batching.parts(out)) == summary["parts"] == 3
        assert [row["id"] for row in rows] == [path.name for path in paths], "in the order of the input"
        for row, line in zip(rows, lines, strict=True):
            assert (row["text"], tuple(row["flags"]), row["error"], row["finish_reason"]) == (
                line.text, line.flags, None, line.finish_reason,
            )  # fmt: skip
            assert math.isclose(row["confidence"], line.confidence, rel_tol=1e-4)
            assert [(w["text"], w["start"], w["end"]) for w in row["words"]] == [(w.text, w.start, w.end) for w in line.words]


def test_int8_is_read_by_onnx_runtime_and_the_same_again(capsys, monkeypatch, tmp_path):
    onnx_backend = pytest.importorskip("trocr_jax.serve.onnx_backend", reason="needs onnx")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    examples = sorted(path for path in (ROOT / "examples").iterdir() if path.suffix in (".png", ".jpg"))
    for out in (tmp_path / "one", tmp_path / "other"):
        code, summary, _ = batch(capsys, ROOT / "examples", out, "--dtype", "int8", options=[])
        assert code == 0 and summary["lines"] == len(examples)
    assert batching.parts(tmp_path / "one") == batching.parts(tmp_path / "other")
    lines = onnx_backend.OnnxReader.from_pretrained().read(examples)
    assert [row["text"] for row in batching.rows(tmp_path / "one")] == [line.text for line in lines]
    with pytest.raises(UsageError, match="leave --beams out"):
        batch_module.run(batch_module.Config(str(ROOT / "examples"), tmp_path / "beams", dtype="int8", beams=4))
    assert not (tmp_path / "beams").exists()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = batch(capsys, ROOT / "examples", tmp_path / "without", "--dtype", "int8")
    assert not (tmp_path / "without").exists(), "the job is not begun"
    assert code == 1 and "--dtype int8 needs the Python package 'onnxruntime': pip install 'trocr-jax[onnx]'" in err


def test_the_report(capsys, model, images, tmp_path):
    code, summary, err = batch(capsys, images, tmp_path / "out", "--model", model, "--price-per-hour", 3.6)
    here = summary["here"]
    assert code == 0 and summary["errors"] == {} and here["lines"] == 60
    assert math.isclose(here["cost_per_1000"], here["seconds"] / 60, rel_tol=1e-3)
    assert math.isclose(here["lines_per_second"], 60 / here["seconds"], rel_tol=1e-2)
    assert 0 <= here["device_waited"] <= 1 and 0 < here["startup_seconds"] < here["seconds"]
    assert "60/60" in err and "line/s" in err and "for 1,000 lines" in err


def test_bad_images_are_named_and_the_rest_is_read(capsys, model, tmp_path):
    good = pictures(200)
    bad = dict(
        zip(random.Random(0).sample(sorted(good), 4), [b"", b"no image", good["00000.png"][:90], b"\xff\xd8\xff"], strict=True)
    )
    folder = batching.folder(tmp_path / "lines", good | bad)
    code, summary, err = batch(capsys, folder, tmp_path / "out", "--model", model)
    rows = batching.rows(tmp_path / "out")
    assert code == 1 and summary["lines"] == len(rows) == 200 and sum(summary["errors"].values()) == 4
    assert {row["id"] for row in rows if row["error"]} == {row["id"] for row in rows if not row["finish_reason"]} == set(bad)
    for name in bad:
        assert sum(f"trocr-jax: {name}: " in line for line in err.splitlines()) == 1, f"{name} is reported in one line"
    assert summary["errors"]["the file is empty"] == 1 and "4 could not be read" in err
    assert "\n          1  the file is empty\n" in err, "each kind with its count"


def test_a_finished_job_is_left_as_it_is(capsys, model, images, tmp_path):
    out = tmp_path / "out"
    first = batch(capsys, images, out, "--model", model)
    before = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    code, summary, _ = batch(capsys, images, out)
    assert code == 0 and summary["lines"] == first[1]["lines"] == 60 and summary["here"]["lines"] == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("part-*")} == before
    assert not [*out.glob("_job/leases/*"), *out.glob(".part*"), *out.glob("_job/draft*")]


def test_images_that_came_after_the_plan_are_not_read_and_that_is_said(capsys, model, tmp_path):
    folder, out = batching.folder(tmp_path / "lines", pictures(5)), tmp_path / "out"
    _, _, err = batch(capsys, folder, out, "--model", model)
    assert "came after" not in err
    batching.folder(folder, {"new.png": batching.png("1"), "sub/new.png": batching.png("2")})
    (folder / "00000.png").unlink()
    code, summary, err = batch(capsys, folder, out)
    told = [line for line in err.splitlines() if "came after this job was planned" in line]
    assert code == 0 and summary["lines"] == 5
    assert told == [
        f"trocr-jax: {folder} has 2 images or shards that came after this job was planned and are not read; "
        "choose another OUTPUT to read them"
    ]
    shutil.rmtree(folder)
    assert batch(capsys, folder, out)[0] == 0, "what was planned is there"


def test_a_relative_input_means_what_it_meant_when_the_job_was_begun(capsys, model, tmp_path, monkeypatch):
    for number in "12":
        batching.folder(tmp_path / number / "lines", {"a.png": batching.png(number)})
    monkeypatch.chdir(tmp_path / "1")
    assert batch(capsys, "lines", tmp_path / "out", "--model", model)[0] == 0
    assert batch(capsys, tmp_path / "1" / "lines", tmp_path / "out")[0] == 0
    monkeypatch.chdir(tmp_path / "2")
    code, _, err = batch(capsys, "lines", tmp_path / "out")
    assert code == 2 and f"begun with INPUT {tmp_path}/1/lines, not {tmp_path}/2/lines" in err


def test_a_missing_part_is_done_again_and_is_the_same(capsys, model, images, tmp_path):
    out = tmp_path / "out"
    batch(capsys, images, out, "--model", model, "--unit-lines", 16)
    whole = batching.parts(out)
    (out / "part-00002.jsonl").unlink()
    code, summary, _ = batch(capsys, images, out)
    assert code == 0 and batching.parts(out) == whole and summary["here"]["lines"] == 16


def test_what_does_not_fit_the_job_is_refused(capsys, model, images, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    batch(capsys, images, out, "--model", model)
    other.mkdir()
    (other / "thesis.doc").touch()
    changed = tiny.model_directory(tmp_path / "model", seed=1)
    cases = [
        (2, "--beams", [images, out, "--beams", 4]),
        (2, "INPUT", [tmp_path, out]),
        (2, "--model", [images, out, "--model", changed]),
        (1, "thesis.doc", [images, other, "--model", model]),
        (1, "no such file", [tmp_path / "absent", tmp_path / "new", "--model", model]),
        (2, "at least 1", [images, tmp_path / "new", "--unit-lines", 0]),
        (1, "no such", [images, tmp_path / "new", "--model", "./no/model"]),
    ]
    for expected, word, arguments in cases:
        code, summary, err = batch(capsys, *arguments)
        assert code == expected and not summary and word in err and len(err.splitlines()) == 1, arguments
    (model_copy := tmp_path / "copy").mkdir()
    for path in Path(model).iterdir():
        (model_copy / path.name).write_bytes(path.read_bytes())
    batch(capsys, images, tmp_path / "third", "--model", model_copy)
    (model_copy / "generation_config.json").write_text('{"num_beams": 2}')
    assert "other weights" in batch(capsys, images, tmp_path / "third")[2]


def test_other_weights_of_the_same_size_are_told_and_a_readme_is_not(model, tmp_path):
    model = shutil.copytree(model, tmp_path / "model")
    first = batch_module.digest(str(model))
    (model / "README.md").write_text("a remark")
    assert batch_module.digest(str(model)) == first
    (model / "large.bin").write_bytes(bytes(4 << 20))
    zeros = batch_module.digest(str(model))
    (model / "large.bin").write_bytes(b"a" * (4 << 20))
    assert len({first, zeros, batch_module.digest(str(model)), batch_module.digest(str(model / "large.bin"))}) == 4
    for name in ("config.json", "preprocessor_config.json"):
        before = batch_module.digest(str(model))
        (model / name).write_text((model / name).read_text() + " ")
        assert batch_module.digest(str(model)) != before, name


def test_containers_give_the_same_texts(capsys, model, images, tmp_path):
    """Other units and batches than the folder's, so probabilities may round otherwise."""
    content = {path.name: path.read_bytes() for path in sorted(images.iterdir())}
    batch(capsys, images, tmp_path / "folder", "--model", model)
    expected = batching.rows(tmp_path / "folder")
    inputs = [
        batching.tar(tmp_path / "x.tar", content), batching.parquet(tmp_path / "x.parquet", content),
        batching.lmdb(tmp_path / "lmdb", content), f"file://{images}",
    ]  # fmt: skip
    for number, source in enumerate(inputs):
        out = tmp_path / f"out{number}"
        code, *_ = batch(capsys, source, out, "--model", model, "--unit-lines", 20)
        found = batching.rows(out)
        assert code == 0 and [row["text"] for row in found] == [row["text"] for row in expected], source
        for a, b in zip(found, expected, strict=True):
            assert math.isclose(a["confidence"], b["confidence"], rel_tol=1e-4)


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs, which is denied: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_said_and_leaves_whole_parts(capsys, model, images, small_disk, tmp_path):
    arguments = ["--model", model, "--unit-lines", 2]
    batch(capsys, images, tmp_path / "whole", *arguments)
    expected = batching.parts(tmp_path / "whole")
    code, summary, err = batch(capsys, images, small_disk / "out", *arguments)
    found = batching.parts(small_disk / "out")
    assert code == 1 and not summary and "No space left on device" in err.splitlines()[-1] and "free some space" in err
    assert 0 < len(found) < 30 and found.items() <= expected.items()
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    code, summary, _ = batch(capsys, images, small_disk / "out")
    assert code == 0 and batching.parts(small_disk / "out") == expected


def holders(out: Path) -> set[int]:
    """Processes that hold leases at this moment."""
    found = set()
    for path in out.glob("_job/leases/*"):
        try:
            found.add(json.loads(path.read_text())["pid"])
        except (FileNotFoundError, ValueError):  # given back, or not yet written
            continue
    return found


def survive(images: Path, model: Path | None, folder: Path, kills: int, delay, expected: dict[str, bytes], *arguments) -> int:
    """Two workers, killed at random and restarted until so many kills are done; every job that ends on the way is compared.

    Returns the number of kills that struck a worker which held work.
    """
    named = ["--model", model] if model else []
    rng, done, struck, job = random.Random(0), 0, 0, 0
    while done < kills:
        out, job = folder / f"out{job}", job + 1
        workers = [batching.worker(images, out, *named, *arguments) for _ in range(2)]
        while done < kills and all(worker.poll() is None for worker in workers):
            delay(rng, out)
            victim = rng.randrange(2)
            if workers[victim].poll() is not None:
                break
            struck += workers[victim].pid in holders(out)
            batching.kill(workers[victim])
            done += 1
            workers[victim] = batching.worker(images, out, *named, *arguments)
        for worker in workers:
            assert "Traceback" not in worker.communicate()[1] and worker.returncode == 0
        assert batching.parts(out) == expected, "0 lost, 0 doubled, 0 differing"
        assert not [*out.glob(".part*"), *out.glob("_job/leases/*")]
    return struck


def decoders_alive(mark: str) -> list[str]:
    """Decoding processes with a text in their environment: those of one test, whatever runs beside it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = ((process / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:
            continue
        if b"trocr_jax.serve.batch_job.decode" in command and mark.encode() in environment:
            found.append(process.name)
    return found


def test_kills_lose_and_double_nothing(capsys, model, images, tmp_path, monkeypatch):
    """Killed as soon as another part is there: in the middle of work, although the job takes a moment."""
    monkeypatch.setenv("TROCR_JAX_TEST", mark := f"kills-{tmp_path}")
    arguments, seen = ["--unit-lines", 1], set()
    batch(capsys, images, tmp_path / "whole", "--model", model, *arguments)
    expected = batching.parts(tmp_path / "whole")

    def delay(rng, out):
        before, deadline = len([*out.glob("part-*")]), time.monotonic() + 60
        while len([*out.glob("part-*")]) == before < len(expected) and time.monotonic() < deadline:
            time.sleep(0.002)
        seen.update(decoders_alive(mark))

    assert len(expected) == 60
    survive(images, model, tmp_path, 2, delay, expected, *arguments)
    assert seen, "workers decode in processes of their own"
    deadline = time.monotonic() + 10
    while decoders_alive(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not decoders_alive(mark), "decoders end with their worker, however it died"


@pytest.mark.slow
def test_twenty_kills_over_two_thousand_images(capsys, tmp_path):
    """With the model in the package; kills come at any moment, also while a worker starts."""
    images = batching.folder(tmp_path / "lines", pictures(2000))
    arguments = ["--unit-lines", 32]
    assert batch(capsys, images, tmp_path / "whole", *arguments)[0] == 0
    expected = batching.parts(tmp_path / "whole")
    ids = [row["id"] for row in batching.rows(tmp_path / "whole")]
    assert ids == sorted(pictures(2000))
    struck = survive(images, None, tmp_path, 20, lambda rng, out: time.sleep(rng.uniform(0.5, 9)), expected, *arguments)
    print(f"20 kills, {struck} of them of a worker that held work")
    assert struck >= 5


@pytest.fixture(scope="module")
def processor(model):
    return Reader.from_pretrained(model).processor


@pytest.mark.parametrize("answering", [False, True])
def test_a_decoder_that_dies_is_replaced_and_the_image_named(processor, monkeypatch, answering):
    ask = batch_decode.DecoderProcess.ask

    def hostile(self, images):
        if b"bomb" in images:
            self.process.kill()
            if answering:
                raise OSError("got end of file during message")  # as multiprocessing calls half an answer
        return ask(self, images)

    monkeypatch.setattr(batch_decode.DecoderProcess, "ask", hostile)
    work, good = partial(decode, processor=processor, pages=False), batching.png("12")
    decoders = batch_decode.Decoders(work, 1, Decoded.failed)
    try:
        found = decoders.submit([good, b"bomb", good, None, "file:///absent.png"]).result()
    finally:
        decoders.close()
    lines = [image.lines[0] for image in found]
    assert [line.error for line in lines] == [
        None, "the image crashed its decoder", None, "the record holds no image", "no such file",
    ]  # fmt: skip
    np.testing.assert_array_equal(lines[2].pixels, processor(tiny.draw("12")))
    assert lines[0].aspect == 22 / 16 and all(len(image.lines) == 1 for image in found)


def test_a_decoder_imports_nothing_from_where_the_images_are(processor, tmp_path, monkeypatch):
    (tmp_path / "queue.py").write_text("open('taken', 'w').close()")
    monkeypatch.chdir(tmp_path)
    decoders = batch_decode.Decoders(partial(decode, processor=processor, pages=False), 1, Decoded.failed)
    try:
        (found,) = decoders.submit([batching.png("12")]).result()
    finally:
        decoders.close()
    assert found.lines[0].error is None and not (tmp_path / "taken").exists()


def test_decoders_end_amid_an_image_that_takes_for_ever():
    decoders, began = batch_decode.Decoders(time.sleep, 1, str), time.monotonic()
    decoders.submit([0]).result()
    hanging = decoders.submit([600, 600])
    time.sleep(0.2)
    (decoder,) = decoders._running
    decoders.close()
    assert time.monotonic() - began < 60 and decoder.process.returncode == -signal.SIGKILL
    assert isinstance(hanging.exception(), batch_decode.DecoderError), "it is not tried again, image by image"


def test_decoders_start_when_they_are_needed(processor):
    decoders = batch_decode.Decoders(partial(decode, processor=processor, pages=False), 3, Decoded.failed)
    try:
        for _ in range(3):
            decoders.submit([batching.png("12")]).result()
        free = [decoders._free.get() for _ in range(3)]
        for decoder in free:
            decoders._free.put(decoder)
        assert sum(decoder is not None for decoder in free) == 1
    finally:
        decoders.close()


def test_the_rate_of_decoding_is_told_for_threads_and_processes(capsys, model, images):
    config = decode_rate.Config(images, model=str(model), workers=(1, 2), rounds=1)
    assert decode_rate.run(config) == 0
    out = capsys.readouterr().out.splitlines()
    told = json.loads(out[-1])
    assert told["images"] == 60 and told["size"] == list(tiny.SIZE) and len(out) == 5
    assert [(row["kind"], row["workers"]) for row in told["results"]] == [
        ("threads", 1), ("threads", 2), ("processes", 1), ("processes", 2),
    ]  # fmt: skip
    table = [[str(row["workers"]), row["kind"], f"{row['images_per_second']:,.1f}"] for row in told["results"]]
    assert [line.split()[:3] for line in out[:-1]] == table


def test_a_window_ends_by_bytes_too_and_keeps_none(monkeypatch):
    """Where it ends depends on the unit alone, or its batches would not."""
    monkeypatch.setattr(batch_pipeline, "WINDOW_BYTES", 1000)
    monkeypatch.setattr(batch_pipeline, "WINDOW", 4)
    sizes = [990, 5, 5, 10, 20, 30, 40, 5000, 1, 1]
    items = [Item(f"{number:05d}", b"x" * size) for number, size in enumerate(sizes)]
    sent = []

    class Nowhere:
        def submit(self, images):
            sent.append(images)

    found = list(batch_pipeline.windows(7, iter(items), Nowhere(), False))
    assert [len(window.items) for window in found] == [2, 4, 2, 2] and [window.last for window in found] == [False] * 3 + [True]
    assert [item.id for window in found for item in window.items] == [item.id for item in items]
    assert not any(item.image for window in found for item in window.items)
    assert [len(image) for images in sent for image in images] == sizes


def test_pictures_of_like_shape_share_a_batch():
    pixels = np.zeros((1, 1, 3), np.uint8)
    prepared = [Prepared(pixels, aspect=a) for a in (9, 1, 8, 2, 1)] + [Prepared(None, error="x")]
    assert batch_pipeline.batches(prepared, 2) == [[1, 4], [3, 2], [0]]


def test_sorting_saves_steps_of_the_decoder(capsys, tmp_path):
    """On the model in the package: the longest text of a batch decides, so sorted batches sum to fewer steps."""
    reader = Reader.from_pretrained()
    images = [tiny.draw("7" * (1 + 17 * (i % 2) + i % 3)) for i in range(32)]
    prepared = [reader.prepare(image) for image in images]
    lengths = [len(line.tokens) for line in reader.read(images, max_new_tokens=32)]
    plain = sum(max(lengths[i : i + 8]) for i in range(0, 32, 8))
    ordered = sum(max(lengths[i] for i in group) for group in batch_pipeline.batches(prepared, 8))
    assert ordered < 0.8 * plain


class Result:
    """What a device gives after some time."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def block_until_ready(self):
        time.sleep(self.seconds)


def test_the_device_clock_counts_when_nothing_was_to_do():
    clock = batch_pipeline.DeviceClock()
    assert clock.waited() == 0.0
    clock.submitted(lambda: Result(0.1))
    time.sleep(0.3)  # nothing for 0.2 s
    clock.submitted(lambda: Result(0.1))
    clock.submitted(lambda: Result(0.1))
    assert 0.3 < clock.waited() < 0.5
    clock.close()


def test_sigterm_gives_the_leases_back(model, images, tmp_path):
    out = tmp_path / "out"
    worker = batching.worker(images, out, "--model", model, "--unit-lines", 1)
    deadline = time.monotonic() + 60
    while not any(out.glob("part-*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    worker.terminate()
    _, err = worker.communicate(timeout=60)
    if worker.returncode != 0:  # else it was done before the signal came
        assert worker.returncode == 143 and "Traceback" not in err
    assert not any(out.glob("_job/leases/*")) and os.listdir(out)


@pytest.fixture
def web():
    """Files at flaky:// that answers with 503 where `broken` has them."""
    import fsspec

    class UnavailableError(Exception):
        status = 503

    class Flaky(fsspec.AbstractFileSystem):
        protocol, files, broken = "flaky", {}, set()

        def _open(self, path, mode="rb", **options):
            if path in self.broken:
                raise UnavailableError
            if path not in self.files:
                raise FileNotFoundError(path)
            return io.BytesIO(self.files[path])

    fsspec.register_implementation("flaky", Flaky, clobber=True)
    return Flaky


@pytest.fixture
def decoders_here(monkeypatch):
    """Decoders in this process, with what a test has made of storage; they wait for nothing."""

    class Here:
        def __init__(self, work):
            self.work = work

        def ask(self, images):
            answer = batch_decode._answer(self.work, images)
            if isinstance(answer, Exception):
                raise answer
            return answer

        def kill(self):
            pass

        end = kill

    monkeypatch.setattr(batch_decode.DecoderProcess, "start", Here)
    monkeypatch.setattr(batch_places, "PAUSES", (0.0, 0.0))


def test_what_cannot_be_fetched_now_is_read_by_the_next_run(model, capsys, tmp_path, web, decoders_here):
    web.files.update(pictures(4))
    names = [f"flaky://{name}" for name in [*pictures(4), "absent.png"]]
    (tmp_path / "x.txt").write_text("".join(f"{name}\n" for name in names))
    web.broken.add("00002.png")
    out = tmp_path / "out"
    code, summary, err = batch(capsys, tmp_path / "x.txt", out, "--model", model)
    assert code == 1 and not summary and "flaky://00002.png: cannot be read now" in err.splitlines()[-1]
    assert err.splitlines()[-1].endswith("--give-up stores it as an error")
    assert not batching.parts(out) and not any(out.glob("_job/leases/*"))
    code, summary, _ = batch(capsys, tmp_path / "x.txt", tmp_path / "gone", "--model", model, "--give-up")
    assert code == 1 and sum(summary["errors"].values()) == 2
    assert [row["error"] for row in batching.rows(tmp_path / "gone")][2].startswith("cannot be read now (")
    web.broken.clear()
    code, summary, _ = batch(capsys, tmp_path / "x.txt", out)
    assert code == 1 and summary["errors"] == {"no such file": 1}
    assert [row["id"] for row in batching.rows(out)] == names


def test_a_folder_that_is_not_mounted_stores_nothing(model, capsys, images, tmp_path, decoders_here):
    """Neither where the mount point is an empty folder nor where it is gone; what one image lacks is an error of that image."""
    folder, out = shutil.copytree(images, tmp_path / "mnt" / "lines"), tmp_path / "out"
    config = batch_module.Config(str(folder), out, model=str(model), unit_lines=20, max_tokens=6)
    batch_module._begin(out, config)
    for away in (tmp_path / "mnt", folder):
        away.rename(tmp_path / "elsewhere")
        if away == folder:
            folder.mkdir()
        code, summary, err = batch(capsys, folder, out)
        assert code == 1 and not summary and "cannot be read now" in err and "is it mounted?" in err.splitlines()[-1]
        assert not batching.parts(out) and not any(out.glob("_job/leases/*"))
        if away == folder:
            folder.rmdir()
        (tmp_path / "elsewhere").rename(away)
    (folder / "00007.png").unlink()
    code, summary, _ = batch(capsys, folder, out)
    assert code == 1 and summary["lines"] == 60 and summary["errors"] == {"no such file": 1}


def test_a_name_cannot_forge_a_line_on_stderr(model, capsys, tmp_path):
    name = "y\ntrocr-jax: all good\x1b[2K\u202e.png"
    folder = batching.folder(tmp_path / "lines", {name: b"no image", "b.png": batching.png("1")})
    _, _, err = batch(capsys, folder, tmp_path / "out", "--model", model)
    assert "trocr-jax: y\\ntrocr-jax: all good\\x1b[2K\\u202e.png: not a PNG" in err and "\x1b[2K" not in err
    assert not any(line.startswith("trocr-jax: all good") for line in err.splitlines())


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [("ftp://127.0.0.1:1/a.png", FetchError, "cannot be read now .*refused"), ("gs://x/a.png", UsageError, "gcs")],
)
def test_what_is_no_fault_of_an_image_comes_out_of_its_decoder(url, error, message):
    decoders = batch_decode.Decoders(partial(read_file, root="/"), 1, lambda reason: reason.encode())
    try:
        with pytest.raises(error, match=message):
            decoders.submit([url, url]).result()
    finally:
        decoders.close()


def test_a_failure_ends_a_worker_that_waits_for_others(model, images, tmp_path, monkeypatch):
    """The feeder waits for a unit that another host holds; what fails in the meantime must not wait with it."""
    from trocr_jax.serve import batch
    from trocr_jax.serve.batch_job.work import Worker

    def fail(*_):
        raise ValueError("the device is gone")

    config = batch.Config(str(images), tmp_path / "out", model=str(model), unit_lines=50, decoders=1, max_tokens=6)
    job = batch._begin(config.output, config)
    job.lease(1).write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))

    def close(self):
        held.append([path.name for path in job.lease(0).parent.iterdir()])
        end(self)

    held, end = [], batch_decode.Decoders.close
    monkeypatch.setattr(batch_decode.Decoders, "close", close)
    monkeypatch.setattr(Reader, "generate", fail)
    worker = Worker(job)
    began = time.monotonic()
    with pytest.raises(ValueError, match="device is gone"):
        batch._share(job, worker, config, 0.0)
    assert time.monotonic() - began < 30 and held == [["part-00001"]], "leases are given back before what may hang is waited for"
