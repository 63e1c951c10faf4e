"""What the library's own verbs of `trocr-jax` do; `cli.py` is the way in."""
