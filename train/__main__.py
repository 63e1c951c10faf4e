"""`python -m train` in a checkout; installed, it is `trocr-jax train`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
