"""`trocr-jax doctor` on machines where something is missing."""

from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import jax
import pytest
import tiny

from trocr_jax import cli
from trocr_jax.commands import doctor


def test_what_is_not_installed_is_told(monkeypatch):
    def found(package: str) -> str:
        if package in ("sentencepiece", "trocr-jax"):
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(doctor, "version", found)
    monkeypatch.setattr(cli, "version", found)
    checks = {check.name: check for check in doctor.machine()}
    assert checks["sentencepiece"] == doctor.Check("sentencepiece", False, "not installed")
    assert checks["trocr-jax"] == doctor.Check("trocr-jax", None, "unknown")  # a bare checkout is no fault
    assert checks["numpy"] == doctor.Check("numpy", None, version("numpy")) and "devices" in checks


@pytest.mark.parametrize(("asked", "told"), [(None, "in full"), ("bfloat16", "in the precision that JAX was told, bfloat16")])
def test_float32_in_fewer_bits_is_told(asked, told):
    with jax.default_matmul_precision(asked):
        (precision,) = (check for check in doctor.machine() if check.name == "precision")
    assert precision.detail.endswith(f"float32 is computed {told}")


def found(directory) -> dict[str, list[doctor.Check]]:
    """The checks of a checkpoint, by name."""
    names = {}
    for check in [*doctor.checkpoint(directory), doctor.opens(directory)]:
        names.setdefault(check.name, []).append(check)
    return names


def test_a_sound_checkpoint_passes(tmp_path):
    checks = found(tiny.model_directory(tmp_path / "m"))
    tokens = tiny.TOKENIZER.size
    assert checks["tokenizer"] == [doctor.Check("tokenizer", True, f"ids agree; {tokens} tokens, {tokens} rows")]
    assert checks["label round trip"][0].detail == "7 of 7"
    assert all(check.passed for named in checks.values() for check in named)


def test_each_thing_that_model_and_tokenizer_say_differently_is_a_check(tmp_path):
    config = replace(tiny.MODEL, bos_token_id=5, pad_token_id=6, eos_token_id=7, decoder_start_token_id=7)
    checks = found(tiny.model_directory(tmp_path / "m", config))
    details = [check.detail for check in checks["tokenizer"] if check.passed is False]
    assert details == [
        f"{name}_token_id is {ours} in the model and {theirs} in the tokenizer"
        for name, ours, theirs in (("bos", 5, 0), ("pad", 6, 1), ("eos", 7, 2))
    ]
    (reader,) = checks["reader"]
    assert reader.passed is False and "do not belong together" in reader.detail


def test_a_checkpoint_of_mixed_parts_ends_with_1(tmp_path, capsys):
    directory = tiny.model_directory(tmp_path / "m", replace(tiny.MODEL, eos_token_id=7))
    assert cli.main(["doctor", str(directory)]) == 1
    out, err = capsys.readouterr()
    assert "FAIL tokenizer          eos_token_id is 7 in the model" in out and "checks failed" in err
