"""Lines drawn by the program: their texts, fonts and damage; `data.py` and `draw.py` are the ways in."""
