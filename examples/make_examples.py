"""Draws the lines in this folder and `texts.tsv` (file, tab, text), with fonts that the packaged model never saw.

Texts, fonts, levels and the seed were written down before the model read any of them:

    bash train/fetch_fonts.sh && python examples/make_examples.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

from trocr_jax.train.config import SyntheticConfig
from trocr_jax.train.drawing.fonts import find_faces
from trocr_jax.train.drawing.synthesis import draw_line

HERE = Path(__file__).parent
SEED = 2026
LINES = (  # file, text, family, level, degrees of tilt
    ("print-1.png", "The river rose two feet in April.", "source-serif-4", "clean", 0),
    ("print-2.png", "Chapter 7: Bridges and Tunnels", "work-sans", "clean", 0),
    ("print-3.jpg", "Café crème, Zürich & Kraków", "libre-baskerville", "clean", 0),
    ("receipt-1.png", "2 x Coffee 7.80", "share-tech-mono", "worn", 0),
    ("receipt-2.jpg", "TOTAL EUR 48,20", "overpass-mono", "worn", 0),
    ("date-1.png", "14 March 2024", "ibm-plex-sans", "clean", 0),
    ("date-2.jpg", "Invoice date: 2023-11-05", "barlow-condensed", "worn", 0),
    ("sum.png", "$1,249.99", "bitter", "clean", 0),
    ("email.png", "maria.lopez@example.org", "karla", "clean", 0),
    ("typewriter.jpg", "Dear Sir, thank you for your letter.", "cutive-mono", "worn", 0),
    ("tilted-1.png", "Tel. +49 30 1234567", "rubik", "worn", 2.5),
    ("tilted-2.jpg", "Order No. 58-2071-B", "linux-libertine", "worn", -2),
)


def main() -> None:
    for number, (name, text, family, level, degrees) in enumerate(LINES):
        faces = find_faces(SyntheticConfig().held_out_fonts, [family])
        image = draw_line(text, np.random.default_rng((SEED, number)), faces, level)
        paper = image.getpixel((0, 0))
        image.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=paper).save(HERE / name)
    rows = "".join(f"{name}\t{text}\n" for name, text, *_ in LINES)
    (HERE / "texts.tsv").write_text(rows, encoding="utf-8")


if __name__ == "__main__":
    main()
