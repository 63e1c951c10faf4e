"""`python -m trocr_jax`: the command line, where no `trocr-jax` is on the PATH."""

from .cli import main

raise SystemExit(main())
