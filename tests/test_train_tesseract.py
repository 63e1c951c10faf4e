"""The comparison with Tesseract: how its table is read, what is said without it, and, where it is installed, a real run."""

import json
import shutil
from pathlib import Path

import pytest
import tiny

from trocr_jax.terminal import UsageError
from trocr_jax.train import tesseract
from trocr_jax.train.tesseract import Config, run, words_of_pages

HEAD = "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext"


def row(level: int, page: int, text: str = "") -> str:
    return "\t".join(map(str, (level, page, 1, 1, 1, 1, 0, 0, 9, 9, 90.5, text)))


def test_words_are_put_together_by_page():
    table = "\n".join([HEAD, row(1, 1), row(5, 1, "Total"), row(5, 1, "9.00"), row(1, 3), row(5, 3, " "), row(5, 3, '"x"')])
    assert words_of_pages(table, 4) == ["Total 9.00", "", '"x"', ""]


def test_mistakes_are_said():
    with pytest.raises(UsageError, match="no level dirty; there are clean, worn, rough"):
        run(Config(levels=("dirty",)))
    with pytest.raises(ValueError, match="no-such-program is not installed; on Debian: apt install tesseract-ocr"):
        run(Config(program="no-such-program"))


def test_its_failure_ends_the_comparison(tmp_path):
    program = tmp_path / "failing"
    program.write_text("#!/bin/sh\necho 'Error opening data file' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(ValueError, match="failed: Error opening data file"):
        tesseract.read([tmp_path / "a.png", tmp_path / "b.png"], Config(program=str(program)))


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="needs tesseract (apt install tesseract-ocr), which is absent")
@pytest.mark.parametrize("alone", [False, True])
def test_both_read_lines_in_order_and_are_scored(tmp_path, capsys, alone):
    import matplotlib

    face = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "STIXGeneral.ttf"
    (tmp_path / "stix").mkdir()
    shutil.copy(face, tmp_path / "stix")
    model = tiny.model_directory(tmp_path / "model")
    config = Config(str(model), 9, ("clean",), tmp_path, max_length=20, batch_size=4, process_a_line=alone)
    assert run(config) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)["levels"]["clean"]
    assert found["tesseract"]["cer"] < 40, "in another order nearly every character would be wrong"
    assert found["model"]["cer"] > 80, "random numbers read nothing"
    assert err.startswith("clean") and f"{found['tesseract']['lines_per_s']:.1f} lines/s" in err
