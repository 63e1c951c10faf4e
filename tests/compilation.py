"""How XLA compiles under test: quickly, and as users have it where that counts. No jax here: flags are read when it starts."""

import os
import subprocess
import sys

FUSIONS = "xla_cpu_use_fusion_emitters"


def quick(flags: str) -> str:
    """XLA's flags and more: the suite is compilation, and without LLVM's optimisation and with the older code for fusions that
    takes a third of the time. `make test-slow` and the servers that tests start run without.

    XLA ends a process that gives it a flag it has dropped, so they are tried.
    """
    level = f"{flags} --xla_backend_optimization_level=0"
    both = f"{level} --{FUSIONS}=false"
    environment = os.environ | {"XLA_FLAGS": both}
    tried = subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], env=environment, capture_output=True)
    return level if tried.returncode else both


def as_users_have_it(jitted, *arguments):
    """A jitted function compiled for arguments like these, with today's code for fusions: the older one is less exact."""
    older = FUSIONS in os.environ["XLA_FLAGS"]
    return jitted.lower(*arguments).compile(compiler_options={FUSIONS: True} if older else None)
