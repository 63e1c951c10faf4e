"""The HTTP server; `cli.py` is the way in."""
