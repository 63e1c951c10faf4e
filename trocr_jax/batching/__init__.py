"""The insides of continuous batching; `engine.py` is the way in."""
