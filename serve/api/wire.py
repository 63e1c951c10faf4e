"""What the routes share of the wire format: strict bodies, JSON, server-sent events, and the fields that OpenAI does not have.

Those live under the one name `trocr`, so that strict clients can overlook them.
"""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

from annotated_types import Ge, Le, MaxLen, MinLen
from fastapi import Request
from fastapi.responses import Response
from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from trocr_jax.batching.device import MAX_ALTERNATIVES
from trocr_jax.line import Line

from .answer import Answer, Entry

Temperature = Annotated[float, Ge(0), Le(2)]
TopP = Annotated[float, Ge(0), Le(1)]
Count = Annotated[int, Ge(1), Le(1 << 31)]
Seed = Annotated[int, Ge(-(1 << 63)), Le((1 << 63) - 1)]
TopLogprobs = Annotated[int, Ge(0), Le(MAX_ALTERNATIVES)]
Beams = Annotated[int, Ge(1), Le(64)]
Empty = Annotated[list[Any], MaxLen(0)]
"""For lists that would have to be obeyed if anything were in them."""
Nothing = Annotated[dict[str, Any], MaxLen(0)]
Zero = Annotated[float, Ge(0), Le(0)]
Name = Annotated[str, MinLen(1), MaxLen(256)]


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("surrogates", "String should have no half of a surrogate pair") from None
    return text


Echoed = Annotated[str, AfterValidator(_encodable)]
"""A text that answers repeat: JSON can say what UTF-8 cannot."""


class Strict(BaseModel):
    """A part of a request's body: no conversions, and no unknown fields, which would be promises not kept. One that is null asks
    for nothing: clients write it for what they leave to the server.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None or name in cls.model_fields}


class TrocrOptions(Strict):
    """What OpenAI's API has no word for."""

    num_beams: Beams | None = None
    page: bool | None = None
    """Whether the images are pages, of which all lines are found and read."""


class ErrorObject(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorObject


ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
"""For the routes' documentation."""


def media_type(request: Request) -> str:
    """What kind of body a request says it has, in small letters and without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def reply(content: dict[str, Any]) -> Response:
    return Response(dumps(content), media_type="application/json")


def dumps(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def sse(content: dict[str, Any], event: str | None = None) -> bytes:
    """One server-sent event."""
    return (f"event: {event}\n".encode() if event else b"") + b"data: " + dumps(content) + b"\n\n"


def now() -> int:
    return int(time.time())


def line_object(line: Line) -> dict[str, Any]:
    """A line with all that is known of it but the tokens."""
    return line.to_dict("text", "confidence", "words", "finish_reason", "flags")


def trocr_object(answer: Answer) -> dict[str, Any]:
    """What OpenAI's objects have no place for: every line by itself, with its words and their confidence."""
    return {"lines": [line_object(line) for line in answer.lines]}


def logprob_objects(entries: tuple[Entry, ...]) -> list[dict[str, Any]]:
    """Tokens as OpenAI shows them."""

    def one(entry: Entry) -> dict[str, Any]:
        return {"token": entry.text, "logprob": entry.logprob, "bytes": list(entry.data)}

    return [{**one(entry), "top_logprobs": [one(other) for other in entry.best]} for entry in entries]
