"""Synthetic lines: labels that can be read back, the same line for the same (seed, index), nothing cut off."""

import pickle
import random
import re
import shutil
import string
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from trocr_jax.train.drawing import fonts, synthesis, texts
from trocr_jax.train.drawing.fonts import Face
from trocr_jax.train.drawing.synthesis import LEVELS, LineSource

DEJAVU = Path("/usr/share/fonts/truetype/dejavu")


@pytest.fixture(scope="module")
def faces() -> tuple[Face, ...]:
    styles = [family + bold for family in ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif") for bold in ("", "-Bold")]
    if not all((DEJAVU / f"{style}.ttf").exists() for style in styles):
        pytest.skip("needs a font: Debian's fonts-dejavu-core is not installed")
    return tuple(Face(style.split("-")[0], style, (str(DEJAVU / f"{style}.ttf"),)) for style in styles)


def same(one: tuple, other: tuple) -> bool:
    return one[1:] == other[1:] and one[0].mode == other[0].mode and one[0].tobytes() == other[0].tobytes()


# texts


@pytest.fixture(scope="module")
def many() -> list[tuple[str, str]]:
    rng = np.random.default_rng(1)
    return [texts.draw_text(rng) for _ in range(20_000)]


def test_labels_are_of_the_alphabet_and_without_spaces_that_cannot_be_read(many):
    alphabet = set(texts.CHARACTERS)
    for text, kind in many:
        assert text and text == " ".join(text.split()), (kind, text)
        assert set(text) <= alphabet, (kind, text)


def test_every_kind_and_every_printable_ascii_character_comes_often_enough(many):
    kinds = Counter(kind for _, kind in many)
    for kind, (weight, _) in texts.KINDS.items():
        assert abs(kinds[kind] / len(many) - weight) < 0.25 * weight + 0.003, kind
    characters = Counter("".join(text for text, _ in many))
    share = {c: characters[c] / characters.total() for c in texts.CHARACTERS}
    assert min(share[c] for c in string.printable[:95]) > 2e-4
    assert min(share.values()) > 1e-5, min(share, key=share.__getitem__)


def test_alphabet_holds_ascii_once_and_every_word_of_the_lists():
    assert len(set(texts.CHARACTERS)) == len(texts.CHARACTERS) and "\t" not in texts.CHARACTERS
    assert set(map(chr, range(0x20, 0x7F))) <= set(texts.CHARACTERS)
    listed = "".join("".join(words) for words in texts.WORDS.values())
    assert set(listed) <= set(texts.CHARACTERS)


@pytest.mark.parametrize("low, high", [(1, 1), (1, 3), (4, 10), (20, 48), (60, 60)])
def test_length_limits(low, high):
    rng = np.random.default_rng(2)
    lengths = [len(texts.draw_text(rng, high, low)[0]) for _ in range(2000)]
    assert min(lengths) >= 1 and max(lengths) <= high
    assert np.mean(lengths) > 0.75 * (low + high) / 2 - 1


def test_impossible_lengths_and_kinds_are_refused():
    for low, high in ((0, 5), (6, 5)):
        with pytest.raises(ValueError, match="1 <= min_length <= max_length"):
            texts.draw_text(np.random.default_rng(0), high, low)


def test_pseudo_words_are_mostly_no_words_of_the_lists():
    rng = np.random.default_rng(3)
    drawn = {language: [texts.pseudo_word(rng, language) for _ in range(200)] for language in texts.LANGUAGES}
    assert all(1 <= len(word) <= 12 for words in drawn.values() for word in words)
    assert sum(word in texts.WORDS["en"] for word in drawn["en"]) < 100


# fonts


def test_a_glyph_that_a_font_lacks_is_known_and_never_drawn(faces):
    face = faces[0]
    assert face.can_draw("Hamburg, 12 € é") and face.can_draw("")
    for text in ("漢", "a漢b", "\U0010fffe"):
        assert not face.can_draw(text)
        with pytest.raises(ValueError, match="no glyph for"):
            fonts.draw_mask(face, 20, text)


def test_capitals_only_and_combining_glyphs_count_as_missing(faces, monkeypatch):
    file = faces[0].files[0]
    real = fonts._glyph
    monkeypatch.setattr(fonts, "_glyph", lambda file, c: real(file, c.upper()))
    assert not fonts._draws.__wrapped__(file, "a") and fonts._draws.__wrapped__(file, "A")
    monkeypatch.setattr(fonts, "_glyph", real)
    assert fonts._draws.__wrapped__(file, "^")
    monkeypatch.setattr(fonts._load(file, 24), "getlength", lambda text: 0.0, raising=False)
    assert not fonts._draws.__wrapped__(file, "^")


def test_a_face_of_two_files_takes_each_character_where_it_is(faces):
    plain = {face.style: face for face in faces}
    first, second = plain["DejaVuSansMono"], plain["DejaVuSans"]
    only = next(c for c in map(chr, range(0x2000, 0x3000)) if second.can_draw(c) and not first.can_draw(c))
    both = Face("both", "both", first.files + second.files)
    assert both.source("a") == first.files[0] and both.source(only) == second.files[0]
    mask, _ = fonts.draw_mask(both, 30, f"ab{only}cd")
    parts = [fonts.draw_mask(face, 30, text)[0].width for face, text in ((first, "ab"), (second, only), (first, "cd"))]
    assert sum(parts) <= mask.width < sum(parts) + 40


def test_found_faces(faces, tmp_path):
    (tmp_path / "serif").mkdir()
    for name in ("serif/x-latin-400-normal.ttf", "serif/x-latin-ext-400-normal.ttf", "loose-Bold.ttf"):
        shutil.copy(faces[0].files[0], tmp_path / name)
    (tmp_path / "LICENSE").write_text("free")
    loose, serif = fonts.find_faces(tmp_path)
    assert (loose.family, serif.family, serif.style) == ("loose", "serif", "x-400-normal")
    assert [Path(file).name for file in serif.files] == ["x-latin-400-normal.ttf", "x-latin-ext-400-normal.ttf"]
    assert fonts.find_faces(tmp_path, ["serif"]) == [serif]
    with pytest.raises(FileNotFoundError, match="fetch_fonts.sh"):
        fonts.find_faces(tmp_path / "none")


def test_masks_keep_the_place_of_a_sign_in_the_line(faces):
    heights = {}
    for text in (".", "'", "o", "O", "g"):
        mask, baseline = fonts.draw_mask(faces[0], 40, text)
        ink = np.asarray(mask)
        heights[text] = mask.height
        assert ink[:, 0].any() and ink[:, -1].any() and 0 < baseline <= mask.height
    assert heights["."] == heights["'"] > 20 and heights["o"] <= heights["O"] + 1 < heights["g"] + 1
    assert not np.asarray(fonts.draw_mask(faces[0], 40, ".")[0])[:20].any(), "a full stop stands on the line"


# lines


def test_a_line_is_a_function_of_seed_and_index(faces):
    source = LineSource(7, faces)
    first = [source[i] for i in range(12)]
    order = list(range(12))
    random.Random(0).shuffle(order)
    again = pickle.loads(pickle.dumps(source))
    assert all(same(first[i], again[i]) for i in order)
    assert not any(same(first[i], other) for i in range(11) for other in (source[i + 1], replace(source, seed=8)[i]))
    assert not any(same(first[i], replace(source, salt=synthesis.HELD_OUT_SALT)[i]) for i in range(12))


def test_labels_can_always_be_drawn_and_sizes_are_sane(faces):
    for level in LEVELS:
        source = LineSource(1, faces, {level: 1.0}, max_length=32)
        for index in range(60):
            image, text, meta = source[index]
            face = next(face for face in faces if face.style == meta["style"])
            assert face.can_draw(text) and 1 <= len(text) <= 32 and meta["level"] == level
            assert image.mode in ("L", "RGB") and 14 <= image.height <= 160
            assert 8 <= image.width <= 32 * 64, (text, image.size)
            assert np.ptp(np.asarray(image.convert("L"))) > 15, "ink and paper differ"


def test_levels_come_by_weight_and_styles_by_family(faces):
    source = LineSource(2, faces, {"clean": 3.0, "rough": 1.0}, max_length=4)
    drawn = Counter((meta := source[i][2])["level"] for i in range(400))
    assert 60 < drawn["rough"] < 140 and drawn.total() == 400 and set(drawn) == {"clean", "rough"}
    families = [[Face("a", str(i), faces[0].files) for i in range(9)], [Face("b", "0", faces[0].files)]]
    rng = np.random.default_rng(0)
    chosen = Counter(synthesis.choose_face(rng, families, "x").family for _ in range(1000))
    assert 430 < chosen["a"] < 570
    assert synthesis.choose_face(rng, families, "漢") is None and meta


def test_geometry_cuts_nothing_off(faces):
    bent = replace(LEVELS["rough"], tilt=8, slant=0.4, curve=0.3, perspective=0.3)
    for seed in range(150):
        rng = np.random.default_rng(seed)
        mask, _ = fonts.draw_mask(faces[seed % len(faces)], 40, texts.draw_text(rng, 20)[0])
        ink = np.asarray(synthesis._bend(mask, rng, bent, 1.0))
        edge = max(ink[0].max(), ink[-1].max(), ink[:, 0].max(), ink[:, -1].max())
        assert edge < 40, f"ink {edge} at the edge, seed {seed}"


def test_an_undamaged_level_is_even_paper_with_margins(faces):
    none = replace(
        LEVELS["clean"], tilt=0, stretch=0, blur=0.1, noise=0.5, jpeg=0, low_resolution=0, bilevel=0, weight=0,
        paper=0, rule=0, neighbour=0, contrast=150,
    )  # fmt: skip
    for seed in range(40):
        gray = np.asarray(synthesis.draw_line("Hg", np.random.default_rng(seed), faces, none).convert("L"), float)
        edges = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
        assert np.ptp(edges) < 12 and np.ptp(gray) > 100


def test_rougher_levels_are_further_from_what_is_drawn(faces):
    def contrast(level: str) -> float:
        images = [synthesis.draw_line("Hamburg 123", np.random.default_rng(i), faces, level) for i in range(60)]
        return float(np.mean([np.std(np.asarray(image.convert("L"))) for image in images]))

    assert contrast("clean") > contrast("worn") > contrast("rough") > 15


def test_text_that_no_face_has_is_refused(faces):
    with pytest.raises(ValueError, match="glyph"):
        synthesis.draw_line("漢", np.random.default_rng(0), faces)


def test_held_out_lines_repeat_and_are_of_their_level(faces):
    lines = synthesis.heldout("worn", 5, 3, faces)
    assert all(same(a, b) for a, b in zip(lines, synthesis.heldout("worn", 5, 3, faces), strict=True))
    assert {meta["level"] for *_, meta in lines} == {"worn"}
    assert not same(lines[0], LineSource(3, faces, {"worn": 1.0})[0])


# fetch_fonts.sh


def test_the_written_split_is_large_enough_and_disjoint():
    script = ROOT / "train" / "fetch_fonts.sh"
    subprocess.run(["bash", "-n", script], check=True)
    content = script.read_text()
    halves = {half: set(re.search(rf'^{half}="(.*?)"', content, re.S | re.M)[1].split()) for half in ("training", "held_out")}
    for half, _, family, _ in re.findall(r"^(training|held-out) (\S+) (\S+) (\S+)$", content, re.M):
        halves[half.replace("-", "_")].add(family)
    assert len(halves["training"]) >= 120 and len(halves["held_out"]) >= 20
    assert not halves["training"] & halves["held_out"]
    shared = {name.split("-")[0] for name in halves["training"]} & {name.split("-")[0] for name in halves["held_out"]}
    assert shared <= {"source", "libre", "share", "space"}, "one design under two names, one in each half?"
