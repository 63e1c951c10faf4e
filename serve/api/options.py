"""How a request wants its images read: its fields, checked against what the server's limits and the model's engine allow."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trocr_jax.decoding import GenerateConfig
from trocr_jax.engine import Engine

from .errors import bad_request
from .limits import Limits

COLDEST = 0.01  # below, a temperature is 0: float32 scores over less overflow
UNBOUNDED = 1 << 30


@dataclass(frozen=True)
class Options:
    """How a request wants its images read.

    Attributes:
        config: how to decode every image.
        choices: n, the number of answers.
        budget: most tokens of one answer.
        seed: for sampling.
        alternatives: top_logprobs, the likeliest tokens to show for each.
        stops: strings that end an answer.
        detailed: whether it wants the tokens.
        stream: whether it wants them while they come.
        page: whether the images are pages, and not lines.
    """

    config: GenerateConfig
    choices: int = 1
    budget: int = UNBOUNDED
    seed: int = 0
    alternatives: int = 0
    stops: tuple[str, ...] = ()
    detailed: bool = False
    stream: bool = False
    page: bool = False


def options_for(
    engine: Engine, limits: Limits, *, temperature: float | None = None, top_p: float | None = None, seed: int | None = None,
    n: int | None = None, max_tokens: int | None = None, num_beams: int | None = None, top_logprobs: int = 0,
    stops: Sequence[str] = (), detailed: bool = False, stream: bool = False, page: bool = False,
    beams_field: str = "num_beams",
) -> Options:  # fmt: skip
    """A request's fields as Options.

    Without a temperature the best text is read, as with 0: OpenAI's default of 1 would make reading a game of chance.

    Args:
        beams_field: what num_beams is called in the request's body.

    Raises:
        ApiError: 400 naming the field.
    """
    choices, beams = n or 1, num_beams or engine.defaults.num_beams
    warm = temperature is not None and temperature >= COLDEST
    if choices > limits.choices:
        raise bad_request(f"n is at most {limits.choices}", "n")
    if num_beams is not None and num_beams not in engine.beams:
        raise bad_request(f"num_beams must be one of {', '.join(map(str, engine.beams))} here", beams_field)
    if beams > 1:
        _check_search(beams, choices, warm, top_logprobs)
    most = engine.defaults.max_new_tokens
    config = replace(engine.defaults, num_beams=beams, num_return_sequences=1, max_new_tokens=min(max_tokens or most, most))
    if warm:
        config = replace(config, do_sample=True, temperature=float(temperature or 0), top_p=1.0 if top_p is None else top_p)
    return Options(
        config, choices, max_tokens or UNBOUNDED, random.getrandbits(32) if seed is None else seed % 2**32, top_logprobs,
        tuple(stops), detailed, stream, page,
    )  # fmt: skip


def _check_search(beams: int, choices: int, warm: bool, top_logprobs: int) -> None:
    if warm or top_logprobs:
        raise bad_request("beam search has neither temperature nor top_logprobs", "temperature" if warm else "top_logprobs")
    if choices > beams:
        raise bad_request("n is at most num_beams", "n")
