"""Converts weights between the hub's layout, the original fairseq checkpoints and this package's Orbax directories.

SRC is a hub name, a model directory or a fairseq .pt file; DST a directory that does not exist yet. With --decoder it
starts a new model instead: SRC is then an image encoder (ViT, DeiT or BEiT) and --decoder a RoBERTa.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from trocr_jax.terminal import UsageError, guarded

if TYPE_CHECKING:
    from trocr_jax.config import TrOCRConfig
    from trocr_jax.model import TrOCR

Size = tuple[int, int]
WARM_START = ("branch", "decoder_layers", "image_size", "seed")


@dataclass(frozen=True)
class Config:
    src: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")]
    """Hub name (NAME@REVISION for a commit, tag or branch), model directory, or fairseq .pt file."""
    dst: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """Directory to make."""
    to: Literal["hub", "orbax"] = "hub"
    """hub: model.safetensors, which transformers loads too; orbax: Orbax with our stacked layers."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """By default as SRC."""
    verify: bool = False
    """Compare DST with transformers on torch: every layer, logits, tokens. Without torch, compare the tensors with SRC's."""
    tokenizer: str | None = None
    """Hub name or directory whose tokenizer goes along, instead of SRC's; a fairseq file has none."""
    config: Path | None = None
    """A config.json, for fairseq files of sizes that were never released."""
    decoder: str | None = None
    """Warm start: hub name or directory of the RoBERTa whose last layers become the decoder."""
    branch: Literal["roberta2", "roberta"] = "roberta2"
    """Warm start: roberta2 keeps RoBERTa whole; roberta takes its embeddings and self-attention only, as large-printed."""
    decoder_layers: int = 12
    """Warm start: how many of RoBERTa's last layers."""
    image_size: Size | None = None
    """Warm start: height and width, positions are interpolated; by default the encoder's own."""
    seed: int = 0
    """Warm start: seed of what no checkpoint gives, above all the cross-attention."""


def run(config: Config) -> int:
    """Converts, and verifies if asked to; 1 if the verification fails.

    Raises:
        UsageError: DST is taken, or a flag would do nothing. ValueError: SRC cannot be read or is not supported.
    """
    from trocr_jax import files, pretrained

    try:
        dst = files.expand(config.dst)
        files.check_free(dst)
    except files.FilesError as error:
        raise UsageError(str(error)) from None
    _check_flags(config)
    if (folder := files.expand(config.src)).is_dir() and dst.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{dst}: lies inside of SRC, which would be a folder of two models; choose another place")
    model, companions, source = _warm_start(config) if config.decoder else _convert(config)
    _tell_of_damage(model, config.dtype)
    pretrained.save(model, dst, companions, to=config.to)
    size = sum(file.stat().st_size for file in dst.rglob("*") if file.is_file())
    print(f"wrote {dst}: {model.dtype.name}, {size / 1e6:.1f} MB", file=sys.stderr)
    return _verify(dst, source) if config.verify else 0


def _check_flags(config: Config) -> None:
    """Refuses what would do nothing: whoever wrote it expects something of it."""
    from trocr_jax import files

    given = [field.name for field in fields(config) if field.name in WARM_START and getattr(config, field.name) != field.default]
    if given and not config.decoder:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"{flags}: only for a warm start, which needs --decoder")
    if not 0 <= config.seed < 2**32:
        raise UsageError("--seed must be from 0 to 4294967295")
    if config.config and config.decoder:
        raise UsageError("--config: only for a fairseq file; a warm start has the sizes of SRC and of --decoder")
    if config.config and not files.expand(config.src).is_file():
        raise UsageError(f"--config: only for a fairseq file, and {config.src} is not a file")


def _tell_of_damage(model: TrOCR, dtype: str | None) -> None:
    """Warns of NaN and infinity, which are converted like any number, as somebody may want to look at them."""
    import numpy as np

    from trocr_jax.checkpoints import weights

    damaged = [name for name, values in weights.arrays(model).items() if not np.isfinite(values).all()]
    if damaged:
        cause = "; float16 ends at 65504, --dtype bfloat16 does not" if dtype == "float16" else ""
        print(f"damaged weights, NaN or infinity: {', '.join(damaged)}{cause}", file=sys.stderr)


def _verify(dst: Path, source: Any) -> int:
    from . import verify

    report = verify.verify(dst, source)
    print(verify.table(report))
    print(json.dumps(report.to_dict()))
    return 0 if report.ok else 1


def _convert(config: Config) -> tuple[Any, dict[str, bytes], Any]:
    """The model, the files that go along with it, and the checkpoint that it came from."""
    import numpy as np

    from trocr_jax import files, pretrained
    from trocr_jax.checkpoints import weights
    from trocr_jax.config import TrOCRConfig
    from trocr_jax.model import TrOCR

    given = TrOCRConfig.from_hf(files.read_json(config.config)) if config.config else None
    source = pretrained.open_checkpoint(config.src, given)
    companions = _complete(config, pretrained.companions(source.path) if source.path.is_dir() else {}, source.config)
    if any(tensor.dtype == np.float64 for tensor in source.tensors.values()):
        print("SRC has float64 weights, DST gets what a model computes in, float32 at most", file=sys.stderr)
    with np.errstate(over="ignore"):  # told of as damage
        model = weights.load(TrOCR.abstract(source.config, config.dtype or source.dtype), source.tensors)
    return model, companions, source


def _warm_start(config: Config) -> tuple[Any, dict[str, bytes], None]:
    """A model made of an image encoder and a RoBERTa, and the files that go along; no checkpoint can be compared with it."""
    from trocr_jax import files, pretrained

    from .warm_start import warm_start

    decoder = files.resolve(config.decoder)
    tokenizer = {name: x for name, x in pretrained.companions(decoder).items() if name in files.TOKENIZER_FILES}
    model, remarks = warm_start(
        files.resolve(config.src), decoder, branch=config.branch, decoder_layers=config.decoder_layers,
        image_size=config.image_size, seed=config.seed, dtype=config.dtype or "float32",
    )  # fmt: skip
    for remark in remarks:
        print(remark, file=sys.stderr)
    if config.tokenizer is None and any(tokenizer.keys() >= set(names) for names in files.TOKENIZERS):
        tokenizer = _named_tokenizer("--decoder", str(config.decoder), model.config)
    return model, _complete(config, tokenizer, model.config), None


def _complete(config: Config, found: dict[str, bytes], model: TrOCRConfig) -> dict[str, bytes]:
    """The files that go along: the tokenizer's, --tokenizer's where it is given, and a preprocessing if there is none."""
    from trocr_jax import files

    if config.tokenizer is None:
        tokenizer = _found_tokenizer(config.decoder or config.src, found, model)
    else:
        tokenizer = _named_tokenizer("--tokenizer", config.tokenizer, model)
    found = {name: content for name, content in found.items() if name not in files.TOKENIZER_FILES} | tokenizer
    if found.keys() & set(files.PREPROCESSOR_FILES):
        _tell_of_preprocessor(config.src, model.encoder.image_size)
    else:
        found["preprocessor_config.json"] = _preprocessor(config, model)
        which = "no preprocessor_config.json" if config.decoder is None else "an encoder's own preprocessing is not taken"
        print(f"{which}: DST gets the preprocessor_config.json of the public checkpoints of this kind", file=sys.stderr)
    return found


def _tell_of_preprocessor(src: str, image_size: Size) -> None:
    """Warns of a preprocessing that nothing can read with; it goes along all the same, as the source's own."""
    from trocr_jax import files
    from trocr_jax.pixels.image_processor import ImageProcessor

    try:
        ImageProcessor.from_hf(files.read_preprocessor(files.resolve(src)), image_size)
    except ValueError as error:
        print(f"{error}; nothing can be read with DST before this is mended", file=sys.stderr)


def _named_tokenizer(flag: str, name: str, model: TrOCRConfig) -> dict[str, bytes]:
    """The files of the tokenizer that a flag names, as transformers needs them.

    Raises:
        ValueError: there is none, or it has another vocabulary, which would turn every text into other tokens.
    """
    from trocr_jax import files
    from trocr_jax.agreement import disagreements
    from trocr_jax.tokens import Tokenizer

    tokenizer = Tokenizer.from_directory(files.resolve(name))
    if wrong := disagreements(model, tokenizer):
        raise ValueError(f"{flag} {name}: {'; '.join(wrong)}; name the model's own with --tokenizer")
    return tokenizer.files


def _found_tokenizer(name: str, found: dict[str, bytes], model: TrOCRConfig) -> dict[str, bytes]:
    """The tokenizer's files among those found, as transformers needs them; says so where the result cannot be read with."""
    from trocr_jax import files
    from trocr_jax.agreement import disagreements
    from trocr_jax.tokens import Tokenizer, TokenizerError

    own = {file: content for file, content in found.items() if file in files.TOKENIZER_FILES}
    try:
        tokenizer = Tokenizer(own)
        wrong, own = "; ".join(disagreements(model, tokenizer)), tokenizer.files
    except TokenizerError as error:
        wrong = str(error)
    if wrong:
        example = "small" if model.decoder.vocab_size == 64044 else "base"
        print(f"{name}: {wrong}; --tokenizer takes one, such as microsoft/trocr-{example}-printed", file=sys.stderr)
    return own


def _preprocessor(config: Config, model: TrOCRConfig) -> bytes:
    """A `preprocessor_config.json`: straight to the model's size, to -1..1.

    The original code resizes bicubically; the hub's ViT checkpoints bilinearly, its DeiT checkpoints bicubically.
    """
    from PIL.Image import Resampling

    from trocr_jax import files
    from trocr_jax.pixels.image_processor import ImageProcessor

    original = files.expand(config.src).is_file() or config.decoder is not None
    resample = Resampling.BICUBIC if original or model.encoder.model_type == "deit" else Resampling.BILINEAR
    height, width = model.encoder.image_size
    return (json.dumps(ImageProcessor(height, width, resample).to_hf(), indent=2) + "\n").encode()


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m convert` in a checkout."""
    config = tyro.cli(Config, prog="convert", args=arguments, description=__doc__)
    return guarded(lambda: run(config))
