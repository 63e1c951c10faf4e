"""What goes wrong, in OpenAI's words: `{"error": {"message", "type", "param", "code"}}` with a status its clients understand.

Clients repeat 408, 409, 429 and 5xx: a bad image must be another 4xx, an overload must say when to come back. Messages are our
own sentences; nothing of a library's exception and nothing unchecked of the request gets into them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_SAFE_LENGTH = 80
_IN_JSON = {"be None": "be null", "be False": "be false", "be less than or equal to 0": "be 0"}


class ApiError(Exception):
    """An answer that is no result.

    Args:
        status: the HTTP status.
        message: one sentence for a person.
        code: one word for a program.
        param: the field of the request that it is about, as a path like `messages[0].content[1]`.
        retry_after: seconds after which another attempt makes sense.
    """

    def __init__(self, status: int, message: str, code: str, param: str | None = None, retry_after: float | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        if self.status == 401:
            return {"www-authenticate": "Bearer"}
        return {} if self.retry_after is None else {"retry-after": str(max(1, math.ceil(self.retry_after)))}

    def encode(self) -> bytes:
        return json.dumps(self.body).encode()


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400: the same request will fail again."""
    return ApiError(400, message, code, param)


def overloaded(retry_after: float, message: str = "too many images are waiting, try again soon") -> ApiError:
    """503: the same request will succeed later."""
    return ApiError(503, message, "overloaded", retry_after=retry_after)


def timed_out() -> ApiError:
    """504: the deadline passed before the result was there."""
    return ApiError(504, "the deadline of the request has passed", "deadline_exceeded", retry_after=1)


def internal() -> ApiError:
    """500: our fault, and nothing about it is told."""
    return ApiError(500, "an internal error; the server's log has it under the request id", "internal_error")


def unsupported_media_type(message: str) -> ApiError:
    """415: the body's Content-Type is not one that the route takes."""
    return ApiError(415, message, "unsupported_media_type")


def from_validation(errors: Sequence[Any]) -> ApiError:
    """Chooses the deepest of pydantic's errors: it is from the branch of a union that was meant. Of two as deep it chooses one
    that is not about the value's type.
    """
    error = max(errors, key=lambda error: (len(error["loc"]), not error["type"].endswith("_type")))
    param, kind = path([part for part in error["loc"] if part != "body"]), error["type"]
    if kind == "extra_forbidden":
        return bad_request(f"{param} is not supported", param, "unsupported_parameter")
    if kind == "missing":
        return bad_request(f"{param or 'the body'} is missing", param, "missing_parameter")
    if kind == "json_invalid":
        return bad_request("the body is not valid JSON", None, "invalid_json")
    if kind.startswith("union_tag"):
        return bad_request(f"{param} has a type that is not supported here", param, "unsupported_type")
    return bad_request(f"{param} should {_wish(error)}" if param else "the body should be a JSON object", param)


def _wish(error: Any) -> str:
    """What a value should be, in pydantic's words where they repeat nothing of the request."""
    if error["type"] in ("value_error", "assertion_error"):
        return "be different"
    text = re.sub(r"^\w+ should ", "", error["msg"]).partition(" after validation")[0]
    return _IN_JSON.get(text, "be empty" if text.startswith("have at most 0 ") else text)


def path(parts: Sequence[str | int]) -> str | None:
    """("messages", 0, "user", "content") as "messages[0].content"; pydantic's tags of unions are left out, odd signs escaped."""
    text, tag = "", False
    for part in parts:
        if isinstance(part, int):
            text, tag = f"{text}[{part}]", True  # lists of objects are tagged unions here: next comes the tag
        elif tag or part in ("str", "list") or (text and not part.isidentifier()):
            tag = False
        else:
            text += f".{ascii(part[:_SAFE_LENGTH])[1:-1]}" if text else ascii(part[:_SAFE_LENGTH])[1:-1]
    return text[: 2 * _SAFE_LENGTH] or None
