"""How tokens are chosen, one after another; `decoding.py` is the way in."""
