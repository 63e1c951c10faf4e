"""`trocr-jax doctor` on machines where something is missing."""

from importlib.metadata import PackageNotFoundError, version

import jax
import pytest

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
