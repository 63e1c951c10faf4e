"""Labelled lines on disk, in every format that people have; `data.py` is the way in."""
