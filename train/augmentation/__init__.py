"""Damage done to images while training; `data.py` is the way in."""
