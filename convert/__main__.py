"""`python -m convert` in a checkout; installed, it is `trocr-jax convert`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
