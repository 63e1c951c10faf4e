"""The command line as a person meets it: results on stdout, one clear line for a mistake, the right exit code."""

import gc
import io
import json
import os
import re
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import tiny
from conftest import ROOT
from PIL import Image

from trocr_jax import cli
from trocr_jax.config import PRESETS
from trocr_jax.line import to_json


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.model_directory(tmp_path_factory.mktemp("cli") / "model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i, text in enumerate(["1", "22", "333"]):
        tiny.draw(text).save(folder / f"{i + 1}.png")
    return folder


def call(capsys, *arguments):
    """Exit code, stdout lines, stderr lines."""
    try:
        code = cli.main(list(map(str, arguments)))
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out.splitlines(), err.splitlines()


def test_help_names_every_command(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    for verb in cli.VERBS:
        assert any(line.strip().startswith(verb) for line in out)


def test_no_command_is_wrong_use(capsys):
    code, out, err = call(capsys)
    assert code == 2 and not out and err


def test_an_unknown_command_is_named(capsys):
    code, _, err = call(capsys, "raed")
    assert code == 2 and "raed" in err[0] and "read" in err[0]


def test_version(capsys):
    code, out, _ = call(capsys, "--version")
    assert code == 0 and re.fullmatch(r"\d+\.\d+\.\d+|unknown", out[0])


def test_a_process_of_its_own_collects_seldom_and_no_other(monkeypatch):
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    assert cli.main(["--version"]) == 0
    assert gc.get_threshold() == before
    monkeypatch.setattr(sys, "argv", ["trocr-jax", "--version"])
    monkeypatch.setattr("atexit.register", lambda call: call())
    try:
        assert cli.main() == 0
        assert gc.get_threshold()[0] > before[0] and gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def test_a_name_cannot_forge_a_line_on_stderr(capsys, tmp_path):
    name = "y\ntrocr-jax: all good\x1b[2K.png"
    (tmp_path / name).write_bytes(b"no image")
    code, _, err = call(capsys, "read", tmp_path)
    assert code == 1 and any(r"y\ntrocr-jax: all good\x1b[2K.png: not a PNG" in line for line in err)
    code, _, err = call(capsys, "read", tmp_path / f"absent {name}")
    assert code in (1, 2) and len(err) == 1 and not any("\x1b" in line for line in err)


def test_a_stdout_that_a_caller_put_in_place_is_written_to(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["read", str(ROOT / "examples" / "sum.png")]) == 0
    assert out.getvalue().strip()


def test_where_a_mistake_happened_is_shown_to_whoever_asks(monkeypatch, tmp_path):
    monkeypatch.setenv("TROCR_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no such"):
        cli.main(["read", "examples", "--model", str(tmp_path / "absent")])


def test_text(capsys, model, folder):
    code, out, err = call(capsys, "read", folder, "--model", model, "--max-tokens", 8)
    assert code == 0 and len(out) == 3
    assert any("float32" in line for line in err), "device and precision are said"


def test_int8_reads_with_onnx_runtime_where_that_is_installed(capsys, monkeypatch):
    onnx_backend = pytest.importorskip("trocr_jax.serve.onnx_backend", reason="needs onnx")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    images = sorted((ROOT / "examples").glob("*.png"))
    made, from_pretrained = [], onnx_backend.OnnxReader.from_pretrained
    note = lambda name, **options: made.append((name, options)) or from_pretrained(name, **options)  # noqa: E731
    monkeypatch.setattr(onnx_backend.OnnxReader, "from_pretrained", note)
    code, out, err = call(capsys, "read", *images, "--dtype", "int8")
    assert made == [(None, {"precision": "int8"})]
    assert code == 0 and err == ["tiny-print on the CPU with ONNX Runtime, int8, greedy"]
    assert out == [line.text for line in from_pretrained().stream(images)]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, out, err = call(capsys, "read", *images, "--dtype", "int8")
    assert (code, out) == (1, []) and err == [
        "trocr-jax: --dtype int8 needs the Python package 'onnxruntime': pip install 'trocr-jax[onnx]'"
    ]


def test_serve_without_its_packages_says_what_installs_them(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "trocr_jax.serve.api.launch", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, out, err = call(capsys, "serve")
    assert (code, out) == (1, [])
    assert err == ["trocr-jax: serve needs the Python package 'uvicorn': pip install 'trocr-jax[serve]'"]


def test_tsv_in_the_order_given(capsys, model, folder):
    paths = [folder / "3.png", folder / "1.png"]
    code, out, _ = call(capsys, "read", *paths, "--model", model, "--format", "tsv", "--max-tokens", 8)
    assert code == 0 and [row.split("\t")[0] for row in out] == list(map(str, paths))
    assert all(row.count("\t") == 1 for row in out)


def test_json(capsys, model, folder):
    asked = ["--format", "json", "--beams", 2, "--alternatives", 1, "--max-tokens", 8]
    code, out, _ = call(capsys, "read", f"{folder}/*.png", "--model", model, *asked)
    rows = [json.loads(row) for row in out]
    assert code == 0 and len(rows) == 3
    for row in rows:
        assert {"path", "text", "confidence", "finish_reason", "flags", "words", "tokens", "error"} <= row.keys()
        assert len(row["tokens"]) <= 8 and 0 <= row["confidence"] <= 1
        (other,) = row["alternatives"]
        assert other["confidence"] <= row["confidence"] and other["tokens"] != row["tokens"]


@pytest.fixture
def bad(tmp_path):
    """One of each kind of bad image, and a good one."""
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    tiny.draw("12").save(tmp_path / "good.png")
    jpeg = tmp_path / "whole.jpg"
    Image.effect_noise((300, 60), 80).save(jpeg)
    (tmp_path / "cut.jpg").write_bytes(jpeg.read_bytes()[: jpeg.stat().st_size // 2])
    jpeg.unlink()
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    return tmp_path


def test_bad_images_are_named_and_the_good_one_is_read(capsys, model, bad):
    code, out, err = call(capsys, "read", bad, "--model", model, "--format", "json", "--max-tokens", 8)
    rows = {row["path"].rsplit("/", 1)[1]: row for row in map(json.loads, out)}
    assert code == 1 and set(rows) == {"empty.png", "text.png", "good.png", "cut.jpg", "bomb.png"}
    assert [name for name, row in rows.items() if not row["error"]] == ["good.png"]
    for name in set(rows) - {"good.png"}:
        assert sum(name in line for line in err) == 1, f"{name} is reported in one line"
    assert any("4 of 5" in line for line in err)


@pytest.mark.parametrize("size", [(1, 1), (30_000, 20), (3, 2000)])
def test_odd_sizes_are_read(capsys, model, tmp_path, size):
    Image.effect_noise(size, 90).save(tmp_path / "odd.png")
    code, out, _ = call(capsys, "read", tmp_path / "odd.png", "--model", model, "--max-tokens", 4)
    assert code == 0 and len(out) == 1


def test_texts_that_may_be_wrong_are_told(capsys, model, tmp_path):
    """They look like any other text."""
    several, blank = tmp_path / "several.png", tmp_path / "blank.png"
    line = tiny.draw("12345")
    page = Image.new("RGB", (line.width, 4 * line.height), "white")
    for row in range(4):
        page.paste(line, (0, line.height * row))
    page.save(several)
    Image.new("RGB", (200, 60), "white").save(blank)
    code, _, err = call(capsys, "read", several, blank, "--model", model, "--max-tokens", 2)
    told = [row for row in err if row.startswith("trocr-jax: ")]
    assert code == 0 and f"{several}: holds several lines" in told[0], told
    assert f"{several}: its text was cut off" in told[1] and f"{blank}: shows no writing" in told[2]


def test_every_file_that_is_named_has_its_row(capsys, model, folder, tmp_path):
    named = [tmp_path / "absent.png", folder / "1.png", tmp_path / "gone.png"]
    code, out, err = call(capsys, "read", *named, "--model", model, "--format", "tsv", "--max-tokens", 8)
    assert code == 1 and [row.split("\t")[0] for row in out] == list(map(str, named))
    assert [f"trocr-jax: {name}: no such file" in err for name in named] == [True, False, True]
    assert err[-1] == "trocr-jax: 2 of 3 images could not be read"


def test_pictures_that_are_not_read_are_told(capsys, model, tmp_path):
    tiny.draw("12").save(tmp_path / "good.png")
    for name in ("a.jp2", "b.PDF", "c.txt", ".hidden.jp2"):
        (tmp_path / name).touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    code, out, err = call(capsys, "read", tmp_path, "--model", model, "--max-tokens", 8)
    assert code == 0 and len(out) == 1
    assert f"trocr-jax: {tmp_path}: 3 files left out, of kinds that are not read or links to nothing (.jp2, .pdf, .png)" in err


def test_remarks_of_a_closed_stderr_do_not_go_among_the_results(capsys, model, folder, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["read", str(folder / "1.png"), "--model", str(model), "--max-tokens", "8"]) == 0
    sys.stderr.close()
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_what_takes_too_much_memory_is_said_with_what_takes_less(capsys, monkeypatch):
    def run(config):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 53438634112 bytes.\nand more")

    monkeypatch.setattr("trocr_jax.commands.read.run", run)
    code, _, err = call(capsys, "read", "x.png")
    assert code == 1 and err[0].endswith("53438634112 bytes; fewer beams or a smaller batch take less memory")


def test_mistakes_get_one_line_and_a_code(capsys, model, folder, tmp_path):
    cases = [
        (2, "image", ["read"]),
        (1, "absent.png", ["read", "absent.png", "--model", model]),
        (1, "nothing*.png", ["read", f"{folder}/nothing*.png", "--model", model]),
        (1, str(tmp_path), ["read", tmp_path, "--model", model]),
        (1, "config.json", ["read", folder, "--model", tmp_path]),
        (2, "at least 1", ["read", folder, "--model", model, "--beams", 0]),
        (2, "at least 0", ["read", folder, "--format", "json", "--alternatives", -1]),
        (2, "--format json alone", ["read", folder, "--beams", 3, "--alternatives", 2]),
        (2, "needs --beams 3 or more", ["read", folder, "--format", "json", "--beams", 2, "--alternatives", 2]),
        (2, "URLs are not read here", ["read", "https://example.org/a.png"]),
        (2, "leave --beams and --mesh out", ["read", folder, "--dtype", "int8", "--beams", 4]),
        (2, "leave --beams and --mesh out", ["read", folder, "--dtype", "int8", "--mesh", "data=2"]),
        (1, "24 decoder positions", ["read", folder, "--model", model, "--max-tokens", 999]),
        (2, "", ["read", folder, "--formt", "json"]),
    ]
    for expected, word, arguments in cases:
        code, out, err = call(capsys, *arguments)
        assert code == expected and not out, arguments
        assert word in "\n".join(err), arguments


def test_wrong_flags_of_measurements_are_wrong_use(capsys, folder, tmp_path):
    for word, arguments in (
        ("--limit", ["eval", "--limit", -1]),
        ("--report", ["eval", "--report", tmp_path / "nowhere" / "x.html"]),
        ("--rounds", ["bench", "--rounds", 0]),
        ("leave out --tokens", ["bench", "--lines", folder, "--tokens", 3]),
        ("--plot", ["bench", "--plot", tmp_path]),
    ):
        code, out, err = call(capsys, *arguments)
        assert (code, out) == (2, []) and len(err) == 1 and word in err[0], arguments


@pytest.mark.parametrize("name", [
    "serve.refill", "serve.curves", "serve.decode_rate", "serve.load", "serve.tpu", "serve.gpu",
    "train.bench", "train.draw", "train.package", "train.tesseract", "train.tpu",
])  # fmt: skip
def test_programs_beside_the_commands_tell_what_they_are_for(capsys, monkeypatch, name):
    module = f"trocr_jax.{name}"
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as stop:
        cli.program(module)
    out = capsys.readouterr().out
    about = cli.load(module, name).__doc__.partition(":")[0].splitlines()[0]
    assert stop.value.code == 0 and out.startswith(f"usage: python -m {module} ") and about in out


@pytest.mark.parametrize(("code", "name", "flags", "said"), [
    (1, "serve.decode_rate", ["absent"], "no such file (absent)"),
    (1, "train.package", ["absent"], "absent: no such file or directory, and not a hub name like owner/model"),
    (2, "train.draw", ["--out", "x", "--levels", "clean", "dirty"], "no level dirty; there are clean, worn, rough"),
    (2, "train.bench", ["--model", "mine"], f"no model mine; there are {', '.join(PRESETS)}"),
    (2, "serve.gpu", ["--models", "mine"], f"no model mine; there are {', '.join(PRESETS)}"),
])  # fmt: skip
def test_mistakes_with_them_are_one_line(capsys, monkeypatch, code, name, flags, said):
    monkeypatch.setattr(sys, "argv", [name, *flags])
    assert cli.program(f"trocr_jax.{name}") == code
    assert capsys.readouterr().err.splitlines() == [f"trocr-jax: {said}"]


def test_no_flag_is_a_double_negation(capsys):
    for verb in cli.VERBS:
        _, out, _ = call(capsys, verb, "--help")
        assert "--no-no-" not in "\n".join(out), verb


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "trocr_jax.serve.decode_rate", raising=False)
    for extra, package in ((None, "trocr-jax"), ("train", "trocr-jax[train]")):
        with pytest.raises(ValueError, match=re.escape(f"bench needs the Python package 'PIL': pip install '{package}'")):
            cli.load("PIL", "bench", extra)


def test_no_network_is_said_in_one_line(capsys, folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, err = call(capsys, "read", folder, "--model", "microsoft/trocr-base-printed")
    assert code == 1 and len(err) == 1 and "microsoft/trocr-base-printed" in err[0]


def test_a_mismatched_tokenizer_is_said(capsys, folder, model, tmp_path):
    import shutil

    from trocr_jax.tokens import character_vocabulary

    other = tmp_path / "mixed"
    shutil.copytree(model, other)
    (other / "manifest.json").unlink()
    character_vocabulary("äöüßñçàèìòùâêîôû").save(other)
    code, _, err = call(capsys, "read", folder, "--model", other)
    assert code == 1 and "do not belong together" in err[-1]


def test_a_closed_pipe_is_no_error_message(model, folder):
    command = f"'{sys.executable}' -m trocr_jax.cli read {folder} --model {model} --format json --max-tokens 20 | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=dict(os.environ))
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_a_picture_named_twice_is_read_once(capsys, model, folder):
    code, out, _ = call(
        capsys, "read", folder / "1.png", folder / "1.png", "--model", model, "--format", "tsv", "--max-tokens", 8
    )
    assert code == 0 and len(out) == 1


def pipe(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_an_image_may_come_through_a_pipe(capsys, monkeypatch, model, folder):
    flags = ["--model", model, "--format", "tsv", "--max-tokens", 8]
    _, expected, _ = call(capsys, "read", folder / "2.png", *flags)
    pipe(monkeypatch, (folder / "2.png").read_bytes())
    code, out, _ = call(capsys, "read", "-", folder / "2.png", *flags)
    assert code == 0 and out == ["-" + expected[0].removeprefix(str(folder / "2.png")), *expected]


@pytest.mark.parametrize("page", [[], ["--page"]])
def test_nothing_in_a_pipe_or_no_pipe_is_an_unreadable_image(capsys, monkeypatch, model, page):
    unreadable = SimpleNamespace(buffer=SimpleNamespace(read=partial(os.read, -1)))  # as of a descriptor that is open for writing
    for stdin in (io.TextIOWrapper(io.BytesIO()), None, unreadable):
        monkeypatch.setattr(sys, "stdin", stdin)
        code, _, err = call(capsys, "read", "-", "--model", model, *page)
        assert code == 1 and "trocr-jax: -: the file is empty" in err


def test_a_file_of_that_name_is_named_with_its_folder(capsys, monkeypatch, model, folder, tmp_path):
    (tmp_path / "-").write_bytes((folder / "3.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    pipe(monkeypatch, (folder / "1.png").read_bytes())
    code, out, _ = call(capsys, "read", "-", "./-", "--model", model, "--max-tokens", 8, "--format", "json")
    found = [json.loads(line)["confidence"] for line in out]
    _, out, _ = call(capsys, "read", folder / "1.png", folder / "3.png", "--model", model, "--max-tokens", 8, "--format", "json")
    assert code == 0 and found == [json.loads(line)["confidence"] for line in out] and found[0] != found[1]


def test_all_pages_of_a_tiff_in_a_pipe_are_read(capsys, monkeypatch, model, folder, tmp_path):
    first = Image.open(folder / "1.png")
    first.save(tmp_path / "two.tif", save_all=True, append_images=[Image.open(folder / "2.png")])
    pipe(monkeypatch, (tmp_path / "two.tif").read_bytes())
    code, _, _ = call(capsys, "read", "-", "--page", "--model", model, "--max-tokens", 8, "--output", tmp_path / "out")
    assert code == 0 and sorted(path.name for path in (tmp_path / "out").iterdir()) == ["stdin-1.txt", "stdin-2.txt"]


def test_of_a_tiff_of_several_pages_it_is_said_that_one_was_read(capsys, model, tmp_path):
    first, path = Image.new("RGB", (90, 30), "white"), tmp_path / "two.tif"
    first.save(path, save_all=True, append_images=[first])
    code, out, err = call(capsys, "read", path, "--model", model, "--format", "json", "--max-tokens", 8)
    assert code == 0 and json.loads(out[0])["flags"] == ["no_text", "several_pages"]
    assert f"trocr-jax: {path}: has several pages; only the first was read" in err


def test_a_name_that_is_not_utf8_stops_nothing(model, folder):
    path = os.fsencode(folder) + b"/caf\xe9.png"
    os.link(folder / "1.png", path)
    command = [sys.executable, "-m", "trocr_jax.cli", "read", path, "--model", str(model), "--format", "tsv", "--max-tokens", "8"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"})
    assert done.returncode == 0 and done.stdout.startswith(path + b"\t")
    row = to_json({"path": os.fsdecode(path), "text": "ü"})
    assert row.isascii() and os.fsencode(json.loads(row)["path"]) == path and "ü" in to_json({"text": "ü"})


@pytest.mark.parametrize("platform", ["abacus", "rocm"])  # one that JAX does not know, one whose plugin is missing
def test_a_device_that_is_not_there_is_one_line(folder, platform):
    command = [sys.executable, "-m", "trocr_jax.cli", "read", str(folder / "1.png")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": platform})
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.startswith("trocr-jax: ") and platform in done.stderr


@pytest.mark.parametrize(
    "program", [lambda: cli.main(), lambda: cli.program("trocr_jax.commands.doctor")], ids=["verb", "module"]
)
def test_ctrl_c_ends_a_process_of_our_own_at_once(monkeypatch, capsys, program):
    """Python's own end would meet XLA's threads, at work still, and crash."""

    def interrupted(*_):
        print("half of it")
        raise KeyboardInterrupt

    ended = []
    monkeypatch.setattr(sys, "argv", ["trocr-jax", "doctor"])
    monkeypatch.setattr(cli, "load", interrupted)
    monkeypatch.setattr(os, "_exit", lambda code: ended.append((code, *capsys.readouterr())))
    program()
    assert ended == [(130, "half of it\n", "trocr-jax: interrupted\n")]
    assert cli.main(["doctor"]) == 130 and len(ended) == 1, "a caller's process goes on"


def test_a_notebook_is_offered_the_public_names():
    found = subprocess.run(
        [sys.executable, "-c", "import trocr_jax; print(*dir(trocr_jax)); print(trocr_jax.__version__)"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    ).stdout  # fmt: skip
    names, version = found.splitlines()
    assert {"Reader", "TrOCR", "generate", "__version__"} <= set(names.split()) and version == cli.package_version()
    done = subprocess.run([sys.executable, "-m", "trocr_jax", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, version)
