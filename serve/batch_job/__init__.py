"""The insides of a batch job; `batch.py` is the way in."""
