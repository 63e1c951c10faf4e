"""The command line of training: presets, files of settings, overrides, and what is refused; drawing a data set; the log."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import tiny
import yaml
from conftest import ROOT
from PIL import Image, ImageFont

from trocr_jax import images
from trocr_jax.files import FilesError
from trocr_jax.pixels.image_processor import ImageProcessor
from trocr_jax.terminal import UsageError
from trocr_jax.train import cli, draw
from trocr_jax.train import sheet as sheet_command
from trocr_jax.train.config import FREE, PRESETS, Config, check, to_plain
from trocr_jax.train.data import mixed_order
from trocr_jax.train.log import Log, read_log
from trocr_jax.train.run_folder import differences
from trocr_jax.train.sets.sources import open_source


def test_the_presets_have_the_original_numbers():
    numbers = {"stage1": (2e-5, 500, 8), "iam": (2e-5, 500, 64), "sroie": (5e-5, 800, 2048), "str": (2e-5, 500, 64)}
    for name, (lr, warmup, batch) in numbers.items():
        preset = PRESETS[name]
        o = preset.optimizer
        assert (o.lr, o.warmup, preset.batch_size) == (lr, warmup, batch), name
        assert (o.schedule, o.weight_decay, o.beta1, o.beta2, o.eps, o.clip) == ("inverse_sqrt", 1e-4, 0.9, 0.999, 1e-8, 0.0)
    assert [PRESETS[name].data.augment for name in ("iam", "sroie", "str")] == ["da2", "da2", "rand"]
    assert [PRESETS[name].patience for name in ("iam", "sroie", "str")] == [20, 10, 20]


def test_flags_override_the_file_and_the_file_the_preset(tmp_path):
    settings = {"optimizer": {"lr": 3e-5}, "steps": 7, "data": {"train": ["a.csv@0.5", "synthetic@0.5"]}, "out": "there"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    config = cli.parse(["--preset", "iam", f"--config={tmp_path / 'run.yaml'}", "--steps", "9", "--optimizer.clip", "1.0"])
    iam = PRESETS["iam"]
    expected = replace(
        iam, steps=9, out=config.out, optimizer=replace(iam.optimizer, lr=3e-5, clip=1.0),
        data=replace(iam.data, train=("a.csv@0.5", "synthetic@0.5")),
    )  # fmt: skip
    assert config == expected and str(config.out) == "there"


def test_the_resolved_configuration_reads_back(tmp_path):
    config = replace(PRESETS["tiny-print-short"], seed=5)
    (tmp_path / "config.json").write_text(json.dumps(to_plain(config)))
    assert cli.parse(["--config", str(tmp_path / "config.json")]) == config


@pytest.mark.parametrize(
    "content, message",
    [
        ("optimizer: {learning_rate: 1}", "optimizer: unknown learning_rate; known: lr"),
        ("step: 3", "unknown step; known: out"),
        ("steps: many", "steps must be int, not 'many'"),
        ("steps: true", "steps must be int, not True"),
        ("dtype: float8", "dtype must be one of float32, bfloat16"),
        ("[1, 2]", "expected fields and values"),
        ("a: [", "not valid YAML or JSON"),
        ("optimizer: 3", "optimizer: expected fields and values"),
        ("steps: [1, 2]", r"steps must be int, not \[1, 2\]"),
        ("out: null", "out must be a path, not None"),
        ("data: {train: {a: b}}", "data: train must be a list of str, not"),
        ("data: {train: [1]}", "data: train must be a list of str, not"),
        ("start: {image_size: 32}", "image_size must be a list of int and int or null, not 32"),
        ("start: {image_size: [32, wide]}", "image_size must be a list of int and int or null"),
        ("start: {image_size: [32]}", "image_size must be a list of int and int or null"),
        ("start: {fit: [pad]}", "fit must be one of"),
    ],
)
def test_wrong_settings_are_refused_by_name(content, message, tmp_path):
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        cli.parse(["--config", str(tmp_path / "run.yaml")])


def test_what_is_not_set_is_null(tmp_path):
    (tmp_path / "run.yaml").write_text("start: {fit: null, dropout: 1e-1, tokenizer: null}\npatience: null\neval_lines: null\n")
    config = cli.parse(["--preset", "iam", "--config", str(tmp_path / "run.yaml")])
    assert (config.start.fit, config.start.dropout, config.start.tokenizer) == (None, 0.1, None)
    assert config.patience is config.eval_lines is None
    assert cli.parse(["--preset", "tiny-print", "--start.fit", "None", "--eval-lines", "None"]).start.fit is None


def test_one_source_need_not_be_a_list(tmp_path):
    (tmp_path / "run.yaml").write_text("data: {train: serials/train}\nstart: {image_size: [32, 64]}\n")
    config = cli.parse(["--config", str(tmp_path / "run.yaml")])
    assert config.data.train == ("serials/train",) and config.start.image_size == (32, 64)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--eval-every 0", "--eval-every must be at least 1, not 0"),
        ("--log-every 0", "--log-every must be at least 1, not 0"),
        ("--save-every -1", "--save-every must be at least 1, not -1"),
        ("--batch-size 0", "--batch-size must be at least 1, not 0"),
        ("--data.group 0", "--data.group must be at least 1, not 0"),
        ("--start.dropout -1", "--start.dropout must be at least 0, not -1.0"),
        ("--devices 0", "--devices must be at least 1, not 0"),
        ("--optimizer.accumulate 3 --batch-size 8", "--optimizer.accumulate 3 must divide --batch-size 8"),
        ("--seed -1", "--seed must be at least 0, not -1"),
        ("--seed 5000000000", "--seed must be less than 4294967296, not 5000000000"),
        ("--optimizer.lr nan", "--optimizer.lr must be less than inf, not nan"),
        ("--optimizer.lr -1", "--optimizer.lr must be above 0, not -1.0"),
        ("--optimizer.beta2 1", "--optimizer.beta2 must be less than 1, not 1.0"),
        ("--optimizer.label-smoothing 2", "--optimizer.label-smoothing must be less than 1, not 2.0"),
        ("--optimizer.ema 1.5", "--optimizer.ema must be less than 1, not 1.5"),
        ("--optimizer.clip nan", "--optimizer.clip must be at least 0, not nan"),
        ("--optimizer.decay (", "--optimizer.decay must be a regular expression, not ("),
        ("--lora.rank 2 --lora.targets (", "--lora.targets must be a regular expression, not ("),
        ("--lora.alpha 32", "--lora.alpha and --lora.targets need --lora.rank"),
        ("--lora.targets fc1", "--lora.alpha and --lora.targets need --lora.rank"),
        ("--start.positions continue", "--start.positions needs --start.image-size"),
        ("--devices 4 --mesh data=2", "--mesh says how many devices: leave --devices out"),
        ("--keep 0", "--keep must be at least 1, not 0"),
        ("--synthetic.min-length 0", "--synthetic.min-length must be at least 1, not 0"),
        ("--synthetic.max-length 0", "--synthetic.max-length must be at least 1, not 0"),
        ("--synthetic.min-length 60", "--synthetic.min-length 60 is more than --synthetic.max-length 48"),
        ("--synthetic.max-squeeze -1", "--synthetic.max-squeeze must be above 0, not -1.0"),
        ("--synthetic.max-squeeze nan", "--synthetic.max-squeeze must be above 0, not nan"),
        ("--synthetic.fresh -1", "--synthetic.fresh must be at least 0, not -1.0"),
        ("--synthetic.fresh inf", "--synthetic.fresh must be less than inf, not inf"),
        ("--hosts.index 1", "--hosts.index and --hosts.coordinator need --hosts.count above 1"),
        ("--optimizer.eps 0", "--optimizer.eps must be above 0, not 0.0"),
        ("--lora.rank 2 --lora.alpha 0", "--lora.alpha must be above 0, not 0.0"),
        ("--data.train", "--data.train needs a value"),
        ("--data.valid", "--data.valid needs a value"),
        ("--start.extend-vocab=", "--start.extend-vocab needs a value"),
        ("--hosts.index -1", "--hosts.index must be at least 0, not -1"),
        ("--hosts.count 2", "--hosts.count above 1 needs --hosts.coordinator"),
        ("--hosts.index 5 --hosts.count 2 --hosts.coordinator a:1", "--hosts.index 5 must be less than --hosts.count 2"),
        ("--hosts.count 2 --hosts.coordinator localhost", "--hosts.coordinator must be address:port, not localhost"),
        ("--preset imam", "no preset 'imam'"),
    ],
)
def test_numbers_that_no_run_can_have_exit_with_2(flags, message, tmp_path, capsys):
    assert cli.main(["--out", str(tmp_path / "run"), *flags.split()]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", PRESETS)
def test_the_presets_pass_the_check(name):
    check(PRESETS[name])


def test_wrong_flags_exit_with_2_and_no_preset_is_said(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.parse(["--optimizer.learning-rate", "1"])
    assert caught.value.code == 2 and "learning-rate" in capsys.readouterr().err
    with pytest.raises(UsageError, match="no preset 'imam'; there are stage1, iam"):
        cli.parse(["--preset", "imam"])
    with pytest.raises(UsageError, match="--preset needs a value"):
        cli.parse(["--preset"])
    with pytest.raises(ValueError, match="cannot be read"):
        cli.parse(["--config", "nowhere.yaml"])


@pytest.mark.parametrize(
    ("package", "flags"),
    [("grain", "--data.train lines"), ("tensorboardX", "--tensorboard"), ("yaml", "--config settings.yaml")],
)
def test_what_the_extra_would_bring_is_told_before_the_run(package, flags, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(["--out", str(tmp_path / "run"), *flags.split()]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"'{package}': pip install 'trocr-jax[train]'" in said and not (tmp_path / "run").exists()


def test_learning_rates_keep_their_digits(tmp_path, capsys):
    log = Log(tmp_path, 10)
    log("train", step=1, lr=2.5512345678e-5)
    log("terminated", step=1)
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["lr"] == 2.55123e-5
    assert capsys.readouterr().err.splitlines() == ["train      step 1 lr 2.551e-05", "terminated step 1"]


def test_mistakes_end_in_one_line(tmp_path):
    command = [sys.executable, "-m", "trocr_jax.train", "--start.model", "no/such/model/here", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no such file or directory" in done.stderr


@pytest.mark.parametrize("main", [cli.main, lambda flags: sheet_command.main(["x.png", *flags])], ids=["train", "sheet"])
def test_what_goes_wrong_ends_as_that_of_every_other_command(main, monkeypatch, capsys):
    """JAX's errors and an interruption in a line; with TROCR_TRACEBACK=1 all of it where it was."""
    monkeypatch.delenv("TROCR_TRACEBACK", raising=False)
    for error, code, said in (
        (RuntimeError("no memory left\nlong story"), 1, "trocr-jax: no memory left\n"),
        (KeyboardInterrupt(), 130, "trocr-jax: interrupted\n"),
        (UsageError("no"), 2, "trocr-jax: no\n"),
    ):
        monkeypatch.setattr(cli, "parse", Mock(side_effect=error))
        assert (main([]), capsys.readouterr().err) == (code, said)
    monkeypatch.setenv("TROCR_TRACEBACK", "1")
    with pytest.raises(UsageError):
        main([])


def test_free_fields_exist():
    plain = to_plain(Config())
    for name in FREE:
        place = plain
        for part in name.split("."):
            assert part in place, name
            place = place[part]


def test_differences_are_named_to_the_leaf():
    a = {"x": 1, "y": {"z": 2, "w": [1]}}
    assert differences(a, a) == []
    assert differences(a, {"x": 1, "y": {"z": 3, "w": [1, 2]}, "new": 0}) == ["y.z", "y.w", "new"]


# --- drawing a data set ---


@pytest.fixture(scope="module")
def font(tmp_path_factory):
    """Pillow's own font as a file: no font needs to be installed."""
    path = tmp_path_factory.mktemp("font") / "plain.ttf"
    face = ImageFont.load_default(12)
    path.write_bytes(face.font_bytes if isinstance(face, ImageFont.FreeTypeFont) else b"")
    return path


def test_a_drawn_data_set_can_be_trained_on(font, tmp_path):
    config = draw.Config(tmp_path / "lines", font, pattern="SN @@-###?", count=40, sheet=tmp_path / "sheet.png")
    assert draw.run(config) == 0
    source = open_source(config.out)
    assert len(source) == 40 and (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    import re

    assert all(re.fullmatch(r"SN [A-Z]{2}-\d{3}[A-Z0-9]", source[i].text) for i in range(40))
    assert len({source[i].text for i in range(40)}) == 40
    again = draw.Config(tmp_path / "again", font, pattern="SN @@-###?", count=40)
    draw.run(again)
    for name in ("metadata.jsonl", "000007.png"):
        assert (again.out / name).read_bytes() == (config.out / name).read_bytes()


@pytest.mark.parametrize(("changes", "told"), [
    ({"texts": Path("a.txt"), "pattern": "##"}, "--texts and --pattern both say what is written"),
    ({"count": 0}, "--count must be at least 1"), ({"levels": ()}, "--levels needs at least one"),
    ({"seed": -1}, "--seed not below 0"), ({"sheet": Path("none/sheet.png")}, "--sheet none/sheet.png: there is no folder none"),
])  # fmt: skip
def test_drawing_refuses_flags_that_mean_nothing(font, tmp_path, changes, told):
    with pytest.raises(UsageError, match=told):
        draw.run(replace(draw.Config(tmp_path / "a", font), **changes))
    assert not (tmp_path / "a").exists()


def test_drawing_refuses_what_it_cannot_do(font, tmp_path):
    with pytest.raises(UsageError, match="no level dirty; there are clean, worn, rough"):
        draw.run(draw.Config(tmp_path / "a", font, levels=("dirty",)))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no texts"):
        draw.run(draw.Config(tmp_path / "b", font, texts=tmp_path / "empty.txt"))
    (tmp_path / "old.txt").write_bytes("Zürich".encode("latin-1"))
    with pytest.raises(ValueError, match="old.txt: not UTF-8"):
        draw.run(draw.Config(tmp_path / "b", font, texts=tmp_path / "old.txt"))
    (tmp_path / "texts.txt").write_text("日本\n")
    with pytest.raises(ValueError, match="glyph"):
        draw.run(draw.Config(tmp_path / "c", font, texts=tmp_path / "texts.txt"))
    assert not (tmp_path / "c").exists(), "nothing half done"


# --- the log ---


def test_the_log_survives_a_cut_line_and_repeated_steps(tmp_path):
    log = Log(tmp_path, 10)
    log("start", step=0)
    for loss in (3.0, 2.0):
        log("train", step=5, loss=loss)
    log("bad_record", problem="a\nb")
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    events = read_log(tmp_path)
    assert [(e["kind"], e.get("loss")) for e in events] == [("start", None), ("train", 2.0), ("bad_record", None)]


@pytest.mark.parametrize("cut", ['{"kind": "bad_record", "problem": "né"}'.encode()[:37], b"12", b'{"kind": "train", "st', b"{}"])
def test_what_a_kill_left_of_a_line_costs_neither_the_log_nor_the_next_event(cut, tmp_path):
    Log(tmp_path, 10)("bad_record", problem="one\u2028text")
    with open(tmp_path / "log.jsonl", "ab") as file:
        file.write(cut)
    Log(tmp_path, 10)("start", step=7)
    assert [(e["kind"], e.get("problem")) for e in read_log(tmp_path)] == [("bad_record", "one\u2028text"), ("start", None)]


def test_a_log_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("trocr_jax.train.log.draw_curves", lambda _: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    with pytest.raises(FilesError, match=f"{tmp_path}: the log cannot be written .No space left on device"):
        Log(tmp_path, 10)("eval", step=5)


def test_samples_and_scalars_reach_tensorboard(tmp_path):
    log = Log(tmp_path, 10, tensorboard=True)
    log("train", step=1, loss=1.0)
    log.samples(1, [(np.zeros((16, 48, 3), np.uint8), "a|b", "a")])
    log.close()
    content = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"train/loss" in content and b"samples/0" in content and b"a\\|b" in content


def test_another_host_writes_nothing_and_says_which_of_its_records_are_bad(tmp_path, capsys):
    log = Log(tmp_path, 10, tensorboard=True, host=3)
    log("train", step=1, loss=1.0)
    log("bad_record", problem="a.png: no image")
    assert not list(tmp_path.iterdir()) and capsys.readouterr().err == "bad_record host 3 problem a.png: no image\n"


def test_a_sheet_shows_what_the_model_will_see(tmp_path, capsys):
    tiny.config(tmp_path)  # makes a model and data
    lines = tmp_path / "lines" / "gt_train.txt"
    flags = ["--start.model", str(tmp_path / "start"), "--data.train", str(lines), "--max-tokens", "8"]
    sheets = [tmp_path / "plain.png", tmp_path / "again.png", tmp_path / "augmented.png"]
    for sheet, more in zip(sheets, ([], [], ["--data.augment", "da2"]), strict=True):
        assert sheet_command.main([str(sheet), *flags, *more]) == 0
    plain, again, augmented = (np.asarray(Image.open(sheet)) for sheet in sheets)
    assert plain.shape == (12 * (16 + 26) + 8, 3 * (48 + 8) + 8, 3)
    assert (plain == again).all() and (plain != augmented).any()
    first = open_source(lines)[mixed_order([open_source(lines)], [1.0], 0)[0][1]]
    processor = ImageProcessor(height=16, width=48, fit="pad")
    np.testing.assert_array_equal(plain[8:24, 8:56], processor(images.load(first.image)))
    capsys.readouterr()
    assert sheet_command.main(["--steps", "3"]) == 2 and "name the picture first" in capsys.readouterr().err
    assert sheet_command.main([str(tmp_path / "x.png"), *flags[:2], "--data.train", "nowhere"]) == 1
    assert "no such file" in capsys.readouterr().err
