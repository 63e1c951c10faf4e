"""Proves a converted model: tensors bit for bit against the source, computation against transformers on torch.

The reference loads the source itself where that is a hub directory, and otherwise an export of what was written. Both sides
compute in float32 with the written weights. A layer is given the reference's input to it, so that every row judges one
module; "end to end" rows judge the whole. torch is used where it is installed, and nowhere else in this package.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trocr_jax import pretrained
from trocr_jax.checkpoints import weights
from trocr_jax.pretrained import Checkpoint

MODULE, WHOLE = 1e-5, 1e-4  # tolerances, as shares of the largest value
ROUNDING = 8  # times the reference's own float32 error, for models that amplify rounding beyond WHOLE
END_TO_END = ("encoder output, end to end", "logits, end to end")
BATCH, LENGTH, NEW_TOKENS = 2, 16, 20


@dataclass(frozen=True)
class Row:
    """One comparison: the largest absolute difference, and how large it may be."""

    what: str
    difference: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.difference <= self.limit


@dataclass(frozen=True)
class Report:
    reference: str
    rows: list[Row]

    @property
    def ok(self) -> bool:
        return bool(self.rows) and all(row.ok for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, "reference": self.reference, "rows": [{**asdict(row), "ok": row.ok} for row in self.rows]}


def verify(written: Path, source: Checkpoint | None) -> Report:
    """Compares a written model directory with its source and, where torch is installed, with the reference.

    Args:
        written: a complete model directory.
        source: what it was made from; None for a warm start, which has none.
    """
    target = pretrained.open_checkpoint(written)
    rows = [_same_tensors(target, source)] if source else []
    try:
        import torch
        import transformers
    except ImportError:
        return Report("torch is not installed: only the tensors were compared", rows)
    with _hub_directory(target, source) as directory:
        rows += _compare(directory, target)
    return Report(f"transformers {transformers.__version__} on torch {torch.__version__}", rows)


def table(report: Report) -> str:
    """The report as a table for people."""
    lines = [f"{row.what:<28} {row.difference:>12.3e} {row.limit:>12.3e}  {'ok' if row.ok else 'WRONG'}" for row in report.rows]
    return "\n".join([f"{'compared':<28} {'difference':>12} {'allowed':>12}", *lines, f"reference: {report.reference}"])


def _same_tensors(target: Checkpoint, source: Checkpoint) -> Row:
    """The number of tensors that are not the source's, converted to the written dtype, bit for bit."""
    theirs, ours = weights.hub_names(source.tensors), weights.hub_names(target.tensors)
    unused = {name for name in theirs if weights.IGNORED.fullmatch(name)}
    if source.config.decoder.tie_word_embeddings:
        unused.add(weights.HEAD)
        theirs.setdefault(weights.EMBED, theirs.get(weights.HEAD, np.empty(0)))
    names = (theirs.keys() | ours.keys()) - unused
    wrong = [n for n in names if n not in theirs or n not in ours or not _equal(np.asarray(theirs[n]), np.asarray(ours[n]))]
    return Row(f"{len(names)} tensors, bit for bit", float(len(wrong)), 0.0)


def _equal(source: np.ndarray, written: np.ndarray) -> bool:
    source = source.astype(written.dtype)
    return source.shape == written.shape and source.tobytes() == written.tobytes()


@contextmanager
def _hub_directory(target: Checkpoint, source: Checkpoint | None) -> Iterator[Path]:
    """A directory that transformers can load: the source, the target, or an export of it."""
    for checkpoint in (source, target):
        if checkpoint is not None and checkpoint.path.is_dir() and not (checkpoint.path / "orbax").is_dir():
            yield checkpoint.path
            return
    with tempfile.TemporaryDirectory() as folder:
        from trocr_jax.model import TrOCR

        model = TrOCR.from_pretrained(target.path)
        yield pretrained.save(model, Path(folder, "export"), pretrained.companions(target.path))


def _compare(directory: Path, target: Checkpoint) -> list[Row]:
    """Every module alone, then the whole, then greedy decoding, on noise that is the same every time."""
    rng, config = np.random.default_rng(0), target.config
    pixels = rng.uniform(-1, 1, (BATCH, *config.encoder.image_size, config.encoder.num_channels)).astype("f4")
    ids = rng.integers(3, config.decoder.vocab_size, (BATCH, min(LENGTH, config.decoder.max_positions)))
    ids[:, 0] = config.decoder_start_token_id
    model = _load_reference(directory, target.dtype)
    expected, tokens = _run_reference(model, pixels, ids), _reference_tokens(model, pixels, config)
    found, found_tokens = _run_ours(target, pixels, ids, expected)
    rows = {what: _row(what, found[what], expected[what]) for what in expected}
    if not all(rows[what].ok for what in END_TO_END):
        exact = _run_reference(model.double(), pixels, ids)
        rows |= {what: _allow_rounding(rows[what], expected[what], exact[what]) for what in END_TO_END}
    return [*rows.values(), Row("greedy tokens that differ", float(np.sum(found_tokens != tokens)), 0.0)]


def _row(what: str, found: np.ndarray, expected: np.ndarray) -> Row:
    tolerance = WHOLE if what in END_TO_END else MODULE
    return Row(what, float(np.abs(found - expected).max()), float(tolerance * np.abs(expected).max()))


def _allow_rounding(row: Row, expected: np.ndarray, exact: np.ndarray) -> Row:
    """The row with a limit that allows for rounding: float32 programs agree no better than one of them agrees with float64."""
    return replace(row, limit=max(row.limit, ROUNDING * float(np.abs(expected - exact).max())))


# --- the reference ---


def _load_reference(directory: Path, dtype: np.dtype) -> Any:
    """The model in float32, its weights rounded as the written ones are."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model: Any = transformers.VisionEncoderDecoderModel.from_pretrained(directory, dtype=torch.float32).eval()
    restore_positions(model)
    return model.to(getattr(torch, dtype.name)).to(torch.float32)


def restore_positions(model: Any) -> None:
    """Fills the sinusoidal tables of a loaded model: no file holds them, and transformers 5 leaves them without memory."""
    for table in _position_tables(model):
        table.weights = table.get_embedding(table.weights.size(0), table.embedding_dim, table.padding_idx)


def _position_tables(model: Any) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__ == "TrOCRSinusoidalPositionalEmbedding"]


def _run_reference(model: Any, pixels: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
    import torch

    dtype = next(model.parameters()).dtype
    for table in _position_tables(model):
        table.weights = table.weights.to(dtype)
    with torch.no_grad():
        images = torch.tensor(pixels.transpose(0, 3, 1, 2)).to(dtype)
        encoded = model.encoder(images, output_hidden_states=True)
        memory = encoded.last_hidden_state
        projected = model.enc_to_dec_proj(memory) if hasattr(model, "enc_to_dec_proj") else memory
        decoded = model.decoder(torch.tensor(ids), encoder_hidden_states=projected, output_hidden_states=True)
    states = {"encoder embeddings": encoded.hidden_states[0]}
    states |= {f"encoder layer {i}": x for i, x in enumerate(encoded.hidden_states[1:])}
    states |= {"encoder output": projected, "decoder embeddings": decoded.hidden_states[0]}
    states |= {f"decoder layer {i}": x for i, x in enumerate(decoded.hidden_states[1:])}
    states |= {"logits": decoded.logits, END_TO_END[0]: projected, END_TO_END[1]: decoded.logits}
    return {what: x.numpy() for what, x in states.items()}


def _reference_tokens(model: Any, pixels: np.ndarray, config: Any) -> np.ndarray:
    import torch
    from transformers import GenerationConfig

    names = ("decoder_start_token_id", "bos_token_id", "pad_token_id", "eos_token_id")
    settings = GenerationConfig(
        max_new_tokens=_new_tokens(config), num_beams=1, do_sample=False, use_cache=True,
        **{name: getattr(config, name) for name in names},
    )  # fmt: skip
    model.generation_config = settings
    found = model.generate(torch.tensor(pixels.transpose(0, 3, 1, 2)), generation_config=settings)[:, 1:].numpy()
    return np.pad(found, ((0, 0), (0, _new_tokens(config) - found.shape[1])), constant_values=config.pad_token_id)


def _new_tokens(config: Any) -> int:
    return min(NEW_TOKENS, config.decoder.max_positions - 1)


# --- ours ---


def _run_ours(
    target: Checkpoint, pixels: np.ndarray, ids: np.ndarray, given: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The same states, each module fed with the reference's, and the tokens of greedy decoding."""
    import jax

    from trocr_jax.decoding import GenerateConfig, generate
    from trocr_jax.model import TrOCR

    model = weights.load(TrOCR.abstract(target.config, "float32"), target.tensors)
    inputs = _stacked(given, "encoder"), _stacked(given, "decoder"), given["encoder output"]
    with jax.default_matmul_precision("highest"):
        states = jax.jit(_states)(model, pixels, ids, *inputs)
        memory = jax.jit(TrOCR.encode)(model, pixels)
        tokens = generate(model, memory, GenerateConfig(max_new_tokens=_new_tokens(target.config))).tokens[:, 0]
    found = {}
    for what, x in states.items():
        found |= {f"{what} {i}": y for i, y in enumerate(np.asarray(x))} if what.endswith("layer") else {what: np.asarray(x)}
    return found, np.asarray(tokens)


def _stacked(given: dict[str, np.ndarray], part: str) -> np.ndarray:
    """The inputs of every layer and the output of the last, [L+1, ...]."""
    return np.stack([x for what, x in given.items() if what.startswith((f"{part} embeddings", f"{part} layer"))])


def _states(model: Any, pixels: Any, ids: Any, encoder: Any, decoder: Any, memory: Any) -> dict[str, Any]:
    import jax

    from trocr_jax.network.decoder_layer import DecoderLayer
    from trocr_jax.network.encoder import EncoderLayer

    output = model.encoder.norm(encoder[-1])
    embedded, _ = model.decoder.states(ids, memory)
    return {
        "encoder embeddings": model.encoder.embed(pixels),
        "encoder layer": jax.vmap(EncoderLayer.__call__)(model.encoder.layers, encoder[:-1]),
        "encoder output": model.enc_to_dec_proj(output) if model.config.has_projection else output,
        "decoder embeddings": embedded,
        "decoder layer": jax.vmap(DecoderLayer.__call__, (0, 0, None))(model.decoder.layers, decoder[:-1], memory),
        "logits": model.decoder.logits(decoder[-1]),
        END_TO_END[0]: model.encode(pixels),
        END_TO_END[1]: model(pixels, ids),
    }
