"""The model in the package: complete, small, read by transformers too, and as good as it was when it was packed."""

import shutil
from unittest.mock import DEFAULT, Mock

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image, ImageDraw, ImageFont
from reference import close, nchw

from trocr_jax import files
from trocr_jax.checkpoints import tensor_files
from trocr_jax.reader import Reader
from trocr_jax.train import package

EXAMPLES = dict(line.split("\t") for line in (ROOT / "examples" / "texts.tsv").read_text(encoding="utf-8").splitlines())


@pytest.fixture(scope="module")
def reader():
    return Reader.from_pretrained()


def test_it_is_small_and_undamaged():
    files.check_manifest(files.PACKAGED)
    assert sum(path.stat().st_size for path in files.PACKAGED.iterdir()) <= 16e6


def test_a_failure_to_package_leaves_what_was_there(tmp_path, monkeypatch):
    monkeypatch.setattr(package, "golden", lambda reader: b"{}")
    old = shutil.copytree(files.PACKAGED, tmp_path / "packaged")
    monkeypatch.setattr(files, "PACKAGED", old)
    write = tensor_files.write_safetensors  # the draft's, then the real one's
    full = Mock(side_effect=[DEFAULT, OSError(28, "no space left")], wraps=write)
    monkeypatch.setattr(tensor_files, "write_safetensors", full)
    with pytest.raises(files.FilesError, match="packaged: cannot be written"):
        package.run(package.Config(old))
    files.check_manifest(old)
    monkeypatch.setattr(tensor_files, "write_safetensors", write)
    assert package.run(package.Config(old)) == 0
    assert (old / "golden.json").read_bytes() == b"{}" and list(tmp_path.iterdir()) == [old]


def test_it_reads_every_printable_character(reader):
    printable = "".join(map(chr, range(0x20, 0x7F)))
    ids = reader.tokenizer.labels(printable)
    assert len(ids) == len(printable) + 1 and reader.tokenizer.decode(ids) == printable


def test_examples(reader):
    lines = reader.read([ROOT / "examples" / name for name in EXAMPLES])
    assert [line.text for line in lines] == list(EXAMPLES.values())


def test_transformers_computes_the_same(reader):
    """Encoder states, and the same tokens, from the directory as it lies in the package."""
    from transformers import VisionEncoderDecoderModel

    reference = VisionEncoderDecoderModel.from_pretrained(files.PACKAGED, dtype=torch.float32).eval()
    pictures = [reader.prepare(ROOT / "examples" / name).pixels for name in list(EXAMPLES)[:4]]
    pixels = np.stack([reader.processor.normalize(p) for p in pictures])
    with torch.no_grad():
        states = reference.encoder(nchw(pixels)).last_hidden_state
        tokens = reference.generate(nchw(pixels), max_new_tokens=48, num_beams=1, do_sample=False)[:, 1:].numpy()
    close(reader.model.encode(pixels), states, 1e-4)
    ours = np.asarray(reader.generate(np.stack(pictures), reader.defaults).tokens[:4, 0])[:, : tokens.shape[1]]
    np.testing.assert_array_equal(ours, tokens)


def test_lines_that_are_longer_than_its_image(reader):
    """As on any printed page; squeezed into the image none of these was read."""
    texts = [
        "the quick brown fox jumps over a lazy dog while many small boxes of fine paper were sent by post",
        "Nobody knew why, but 27 people signed for 1,350 parcels (or more) on Friday, 14 March 2025.",
    ]
    pictures = []
    for text in texts:
        picture = Image.new("L", (1900, 60), 255)
        ImageDraw.Draw(picture).text((20, 8), text, fill=0, font=ImageFont.load_default(36))
        pictures.append(picture)
    lines = reader.read([pictures[0], ROOT / "examples" / "sum.png", pictures[1]])
    assert [line.text for line in lines] == [texts[0], "$1,249.99", texts[1]]
    assert [word.text for word in lines[0].words] == texts[0].split() and lines[0].flags == ()
    alone = reader.read(pictures[1])  # in a batch of another size, of which probabilities may differ by rounding
    assert [token.id for token in alone.tokens] == [token.id for token in lines[2].tokens] and alone.words[0].text == "Nobody"
    assert alone.confidence == pytest.approx(lines[2].confidence, rel=1e-4)
    beams = reader.read(pictures[0], num_beams=2, num_return_sequences=2)
    assert beams.text == texts[0] and len(beams.alternatives) == 1
