"""Checks before the first step: what makes fine-tuned models babble is found in seconds instead of after a night.

Each check returns a line about what it saw, or raises Failed with what is wrong and what to do.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from trocr_jax.agreement import disagreements
from trocr_jax.config import TrOCRConfig
from trocr_jax.decoding import GenerateConfig, read_pixels
from trocr_jax.model import TrOCR, normalize, shift_right
from trocr_jax.network.layers import Array
from trocr_jax.tokens import Tokenizer

from .batches import Batch
from .config import OptimizerConfig
from .optimizer import make_optimizer
from .parameters import Arrays, build, finite
from .step import StepConfig, make_step, new_state

TIE = 1e-3  # logits closer than this may swap places between two ways to compute them
LOSSY = 0.02  # share of labels that may come back changed


class Failed(ValueError):
    """A check that did not pass: training would waste hours."""


def check(
    config: StepConfig, parameters: Arrays, tokenizer: Tokenizer, texts: Collection[str], batch: Batch, overfit: int
) -> Iterator[str]:
    """Runs the checks one by one."""
    yield finite_numbers(parameters)
    yield token_ids(config.model, tokenizer)
    yield round_trips(tokenizer, texts)
    yield composed(texts)
    yield agreement(build(config.model, parameters), batch.images[:4], config, min(batch.labels.shape[1], 32))
    if overfit:
        yield learns_by_heart(config, parameters, tokenizer, batch, overfit)


def finite_numbers(parameters: Arrays) -> str:
    """No parameter is infinite or NaN, which every other check and the first loss would blame on something else."""
    wrong = [name for name, x in parameters.items() if not finite(x)]
    _require(not wrong, f"the model to start from is damaged, these hold NaN or infinity: {', '.join(wrong)}")
    return f"{len(parameters)} parameters are finite"


def token_ids(model: TrOCRConfig, tokenizer: Tokenizer) -> str:
    """The model's ids are the tokenizer's, and every token has a row."""
    wrong = disagreements(model, tokenizer)
    _require(not wrong, f"{'; '.join(wrong)}: they do not belong together, --start.tokenizer gives a model another tokenizer")
    _require(model.decoder_start_token_id != model.pad_token_id, "decoder_start_token_id is the padding")
    probe = tokenizer.labels("a")
    _require(probe[-1] == model.eos_token_id and tokenizer.bos_token_id not in probe[:-1], "labels are not tokens and then </s>")
    rows = f"{tokenizer.size} tokens, {model.decoder.vocab_size} rows"
    return f"token ids agree; {rows}; start {model.decoder_start_token_id}, end {model.eos_token_id}"


def round_trips(tokenizer: Tokenizer, texts: Iterable[str]) -> str:
    """Labels come back as they went in; what does not could never be read right."""
    texts = set(texts)  # few are drawn again and again
    changed = {text: back for text in texts if (back := tokenizer.decode(tokenizer.labels(text))) != text}
    lost = Counter(c for text, back in changed.items() for c in set(text) - set(back))
    example = next(iter(changed.items()), ("", ""))
    message = (
        f"{len(changed)} of {len(texts)} labels change in the tokenizer, such as {example[0]!r} to {example[1]!r}; "
        f"characters lost: {' '.join(c for c, _ in lost.most_common(20)) or 'none'}"
    )
    _require(len(changed) <= LOSSY * len(texts), f"{message}. Add them with --start.extend-vocab, or clean the labels")
    return message if changed else f"{len(texts)} labels come back unchanged"


def composed(texts: Iterable[str]) -> str:
    """How many labels have accents apart from their letters: a model learns to write what its labels have."""
    texts = set(texts)
    apart = sum(not unicodedata.is_normalized("NFC", text) for text in texts)
    message = f"{apart} of {len(texts)} labels have their accents apart from the letters; most models write Unicode's NFC"
    return message if apart else "letters and accents of all labels are composed (NFC)"


def agreement(model: TrOCR, images: np.ndarray, config: StepConfig, length: int) -> str:
    """What is generated step by step is what teacher forcing predicts from the same tokens: same start, mask and cache."""
    result = read_pixels(model, jnp.asarray(images), GenerateConfig(max_new_tokens=length), config.mean, config.std)
    tokens, lengths = result.tokens[:, 0], np.asarray(result.lengths[:, 0])
    logits = np.asarray(_teacher_forced(model, jnp.asarray(images), tokens, config.mean, config.std))
    real = np.arange(length) < lengths[:, None]
    chosen = np.take_along_axis(logits, np.asarray(tokens)[..., None], axis=-1)[..., 0]
    behind = np.where(real, logits.max(axis=-1) - chosen, 0.0)
    worst = behind.max()
    _require(worst < TIE, f"generation and teacher forcing disagree by {worst:.3g} in the logits: a bug, please report it")
    return f"generation and teacher forcing agree on {int(real.sum())} tokens"


@jax.jit
def _forward(model: TrOCR, pixels: Array, tokens: Array) -> Array:
    return model(pixels, shift_right(tokens, model.config)).astype(jnp.float32)


def _teacher_forced(model: TrOCR, images: Array, tokens: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    return _forward(model, normalize(images, mean, std), tokens)


def learns_by_heart(config: StepConfig, parameters: Arrays, tokenizer: Tokenizer, batch: Batch, steps: int) -> str:
    """A few lines, the same ones every step, must be learned; otherwise labels or pictures are not what they seem."""
    rows = min(len(batch.images), 8)
    images, labels = jnp.asarray(batch.images[:rows]), jnp.asarray(batch.labels[:rows])
    config = replace(config, accumulate=1, ema=0.0, label_smoothing=0.0)
    optimizer = make_optimizer(OptimizerConfig(lr=3e-4, schedule="constant", warmup=10, weight_decay=0.0, clip=1.0), steps, {})
    state = new_state(config, jax.tree.map(jnp.array, parameters), {}, optimizer, 0)
    step, accuracy = make_step(optimizer, config), 0.0
    for done in range(1, steps + 1):
        state, metrics = step(state, images, labels)
        accuracy = float(metrics["accuracy"])
        if accuracy == 1.0:
            return f"{rows} lines learned by heart in {done} steps"
    raise Failed(f"{rows} lines were not learned by heart in {steps} steps ({accuracy:.0%} of tokens); check labels and images")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise Failed(message)
