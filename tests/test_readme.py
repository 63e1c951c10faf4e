"""The README's snippets are run as they stand."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

from trocr_jax import cli

README = (ROOT / "README.md").read_text(encoding="utf-8")
NEEDS_NETWORK = ("microsoft/", "base back")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0])
def test_python(code):
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert run.returncode == 0 and run.stdout, run.stderr[-2000:]


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line and not any(word in line for word in NEEDS_NETWORK)]


@pytest.mark.parametrize("command", commands())
def test_shell(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    program, *arguments = shlex.split(command)
    assert program == "trocr-jax"
    if arguments[0] == "convert":
        arguments[2] = str(tmp_path / "out")
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out


def test_the_commands_shown_without_being_run_exist():
    shown = re.findall(r"trocr-jax (\w+)", README)
    assert set(shown) - {"COMMAND", "in"} <= set(cli.VERBS) | {"NAME"}


def test_there_is_something_to_run():
    assert len(blocks("python")) >= 2 and len(commands()) >= 4
