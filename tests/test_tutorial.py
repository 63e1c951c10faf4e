"""The tutorial's commands, one after the other as they stand, with fewer lines and steps."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

from trocr_jax import files

TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
SHORTER = {"--count 1500": "--count 40", "--count 200": "--count 8", "--steps 150": "--steps 4", "-every 50": "-every 2"}
SHAPES = "jax.eval_shape(jax.value_and_grad(loss), "


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


def shell(script: str, folder: Path) -> str:
    """Runs bash commands with this Python's programs first; returns stdout."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
    done = subprocess.run(["bash", "-e", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_tutorial_from_its_first_command_to_a_loop_of_ones_own(tmp_path, monkeypatch):
    """As one: the parts would each run the commands, where several processes share the tests."""
    script = "\n".join(blocks("bash"))
    for long, short in SHORTER.items():
        assert long in script
        script = script.replace(long, short)
    every_command_leaves_what_the_text_says(tmp_path, shell(script, tmp_path))
    shell(f"{sys.executable} -W error - <<'END'\n{blocks('python')[0]}\nEND", tmp_path)
    monkeypatch.chdir(tmp_path)
    a_loop_of_ones_own_has_what_it_needs()


def every_command_leaves_what_the_text_says(folder: Path, out: str) -> None:
    before, after = (json.loads(line) for line in out.splitlines() if line.startswith("{"))
    assert before["results"][0]["lines"] == after["results"][0]["lines"] == 8
    run = folder / "runs" / "serials"
    for path in (folder / "sheet.png", folder / "report.html", run / "log.jsonl", run / "curves.png", run / "model"):
        assert path.exists(), path
    assert list((run / "tensorboard").iterdir())
    files.check_manifest(folder / "serials-model")
    rows = [json.loads(line) for line in (folder / "serials" / "train" / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 40 and all(re.fullmatch(r"[A-Z]{2}-\d{4}-[A-Z0-9]{2}\d", row["text"]) for row in rows)
    assert len(out.splitlines()) == 4, "two tables as JSON, and two lines that were read"


def a_loop_of_ones_own_has_what_it_needs() -> None:
    """Everything but the steps, which take long to compile and are those of test_train_step."""
    _, steps, loss = blocks("python")
    steps, loss = steps.replace("range(20)", "range(0)"), loss.replace("jax.jit(jax.value_and_grad(loss))(", SHAPES)
    assert "range(0)" in steps and SHAPES in loss
    names: dict = {}
    exec(f"{steps}\n{loss}", names)
    files.check_manifest(Path("runs/own"))
    assert names["value"].shape == () and names["gradient"].config == names["network"].config
