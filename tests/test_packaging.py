"""The wheel: what a user gets from pip, in an environment of its own, outside the checkout."""

import shutil
import subprocess
import sys
import venv
import zipfile

import pytest
from conftest import ROOT

from trocr_jax.cli import VERBS

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Of a copy: two processes that build in one folder take each other's files away."""
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(".*", "build", "runs", "*.egg-info"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """An interpreter with the wheel installed; the dependencies are this environment's, or it would take minutes."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False)
    site = next((home / "lib").glob("python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    return home / "bin" / "python"


def run(python, *arguments, cwd):
    return subprocess.run([python, *arguments], capture_output=True, text=True, cwd=cwd)


def test_what_the_wheel_holds(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        sizes = {info.filename: info.compress_size for info in archive.infolist()}
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"trocr_jax"}
    for app in ("convert", "train", "serve"):
        assert f"trocr_jax/{app}/__init__.py" in names
    for file in (
        "config.json",
        "model.safetensors",
        "vocab.json",
        "merges.txt",
        "preprocessor_config.json",
        "manifest.json",
        "golden.json",
    ):
        assert f"trocr_jax/tiny-print/{file}" in names
    packaged = sum(size for name, size in sizes.items() if name.startswith("trocr_jax/tiny-print/"))
    assert packaged <= 16e6, f"the packaged model takes {packaged / 1e6:.1f} MB of the wheel"
    assert "trocr_jax/py.typed" in names


def test_generic_names_are_not_importable(python, tmp_path):
    for name in ("convert", "train", "serve"):
        result = run(python, "-c", f"import {name}", cwd=tmp_path)
        assert result.returncode == 1 and "No module named" in result.stderr


def test_the_package_comes_from_the_wheel(python, tmp_path):
    result = run(python, "-c", "import trocr_jax; print(trocr_jax.__file__)", cwd=tmp_path)
    assert str(python.parent.parent) in result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_answers_help(python, tmp_path, verb):
    result = run(python, "-m", "trocr_jax.cli", verb, "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert f"trocr-jax {verb}" in result.stdout


def test_the_wheel_reads_without_the_checkout(python, tmp_path):
    result = run(python, "-m", "trocr_jax.cli", "doctor", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
