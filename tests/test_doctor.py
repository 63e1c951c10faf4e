"""`trocr-jax doctor` on machines where something is missing."""

from importlib.metadata import PackageNotFoundError, version

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
