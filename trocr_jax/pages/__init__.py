"""The lines of a page, found and written down; `page.py` is the way in."""
