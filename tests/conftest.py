"""Flags for the whole suite: 8 virtual CPU devices, strict dtype promotion; where the shared fixtures are."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from compilation import quick

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] = quick(os.environ["XLA_FLAGS"])
# and many files and commands under test compile the same programs: one folder for all of them, gone with this run
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="trocr-jax-tests-")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
FAMILIES = ("family_a_vit_learned_tied", "family_b_vit_sinusoidal_untied", "family_c_deit_learned_untied")


@pytest.fixture(scope="module", autouse=True)
def few_mappings():
    """Compiled programs of one file at a time: each is memory mappings, and a process crashes above 65,530 of them."""
    yield
    jax.clear_caches()


def shared(*parts: str) -> Path:
    """Path under the shared reference data, which is not part of the project: a test that needs it skips without it."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs the reference data {'/'.join(parts)} in ../shared, which is absent")
    return path
