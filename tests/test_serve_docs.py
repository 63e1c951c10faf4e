"""The examples in docs/operations.md are run as they stand, against a server with a key, from the checkout's root."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest
from conftest import ROOT
from serving import MODEL, PICTURES, lines, serving

from trocr_jax.serve.api.limits import Limits
from trocr_jax.serve.cli import Config

DOCUMENT = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
KEY = "sk-" + "e" * 24
FIRST = ROOT / "examples" / "print-1.png"


@pytest.fixture(scope="module")
def server():
    with serving(keys=[KEY]) as running:
        yield running


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(found) == 1
    return found[0]


def run(command: list[str], content: str, server, tmp_path) -> str:
    """A block in a file, its address changed to the server's."""
    assert "http://127.0.0.1:8000" in content
    file = tmp_path / command.pop()
    file.write_text(content.replace("http://127.0.0.1:8000", server.url))
    environment = os.environ | {"TROCR_API_KEY": KEY, "PYTHONWARNINGS": "error"}
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def line():
    return lines()[PICTURES.index(FIRST)]


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl, which is absent")
def test_curl(server, tmp_path):
    out = run(["bash", "-e", "example.sh"], block("bash"), server, tmp_path)
    assert f'"id":"{MODEL}"' in out and out.count('"object":"ocr.result"') == 3 and out.count('"error":null') == 4
    assert line().text in out and out.count('"polygon"') > 9


def test_openais_python_client(server, tmp_path):
    out = run([sys.executable, "example.py"], block("python"), server, tmp_path)
    assert out.splitlines() == [line().text] * 3


@pytest.mark.skipif(not shutil.which("node"), reason="needs node (Debian: apt-get install nodejs), which is absent")
def test_javascript(server, tmp_path):
    out = run(["node", "example.mjs"], block("javascript"), server, tmp_path)
    text, confidence = out.strip().rsplit(" ", 1)
    assert text == line().text and 0 <= float(confidence) <= 1


def test_every_option_that_is_named_exists():
    names = set(re.findall(r"--([a-z][a-z.-]+)", DOCUMENT)) - {"plot"}
    known = {f.name for f in fields(Config)} | {f"limits.{f.name}" for f in fields(Limits)} | {"help"}
    assert {name.replace("-", "_") for name in names} <= known
    untold = {f"limits.{f.name}" for f in fields(Limits)} - {name.replace("-", "_") for name in names}
    assert untold <= {"limits.url_bytes", "limits.url_seconds"}


def test_every_metric_that_is_named_exists(server):
    with server.client(headers={"authorization": f"Bearer {KEY}"}) as client:
        text = client.get("/metrics").text
    for name in set(re.findall(r"\b(?:trocr|process)_[a-z_]+", DOCUMENT)) - {"trocr_jax"}:
        assert re.search(rf"^# TYPE {name}\b", text, re.MULTILINE), name


def test_pictures_that_are_shown_are_there():
    for name in re.findall(r"!\[.*?\]\((.*?)\)", DOCUMENT):
        assert (ROOT / "docs" / name).stat().st_size < 300_000
