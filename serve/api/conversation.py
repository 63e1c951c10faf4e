"""What /v1/chat/completions and /v1/responses share: a conversation whose last turn holds the images to read.

The images of the last turn (the user messages after the last answer, or work on one, as of tools) are read, in order, and their
lines joined with newlines: one an image, or, as `trocr.page` asks, all that are found on it.
Texts of any message are accepted and have no influence: TrOCR reads, it does not listen. Fields that would have one and cannot
be obeyed are refused by name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Literal, Protocol

from fastapi import Depends, Request
from fastapi.responses import Response, StreamingResponse

from .answer import Entry
from .errors import bad_request, unsupported_media_type
from .limits import Limits
from .options import Options, options_for
from .reading import Reading
from .service import Served, Service
from .sources import RequestImage
from .wire import Echoed, Empty, Name, Strict, Temperature, TopLogprobs, TopP, TrocrOptions, media_type, reply

Detail = Literal["auto", "low", "high", "original"]
"""OpenAI's level of detail of an image, which changes nothing: every image has one size for the model."""


class TextFormat(Strict):
    type: Literal["text"]


class MessagePart(Strict):
    """A part of a message."""

    prompt_cache_breakpoint: dict[str, Any] | None = None  # whatever its value, the same text is read


class ImagePart(MessagePart):
    """A part of a message that holds an image, in the words of one of the two APIs."""

    def source(self, place: str) -> RequestImage:
        """The image; `place` is where the part stands in the body."""
        raise NotImplementedError


class Conversation(Strict):
    """A body of either route."""

    model: Name
    stream: bool | None = None
    top_logprobs: TopLogprobs | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    trocr: TrocrOptions | None = None
    # whatever the values of these, the same text is read
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    metadata: dict[Echoed, Echoed] | None = None
    service_tier: str | None = None
    parallel_tool_calls: bool | None = None
    # these would ask for what is not done here: only values that ask for nothing are accepted
    store: Literal[False] | None = None
    tools: Empty | None = None
    tool_choice: Literal["none", "auto"] | None = None

    def sources(self) -> list[RequestImage]:
        """The images of the last turn. Raises ApiError 400 where there are none."""
        raise NotImplementedError

    def options(self, served: Served, limits: Limits) -> Options:
        """Raises ApiError 400 for fields that contradict each other or the server."""
        raise NotImplementedError

    def _options(self, served: Served, limits: Limits, **own: Any) -> Options:
        """Options from the fields that both routes have, and from a route's own."""
        return options_for(
            served.engine, limits, temperature=self.temperature, top_p=self.top_p, top_logprobs=self.top_logprobs or 0,
            num_beams=self.trocr.num_beams if self.trocr else None, beams_field="trocr.num_beams",
            page=bool(self.trocr and self.trocr.page), stream=bool(self.stream), **own,
        )  # fmt: skip


def last_images(messages: Sequence[Any], field: str, part_type: str) -> list[RequestImage]:
    """The images of the last turn.

    Args:
        messages: each has a role; those of users have a content, too, which is a text or a list of parts.
        field: the field of the body that holds the messages.
        part_type: what the API calls an ImagePart.

    Raises:
        ApiError: 400, there are none.
    """
    asking = "user", "system", "developer"
    answered = max((i for i, message in enumerate(messages) if message.role not in asking), default=-1)
    found = [
        part.source(f"{field}[{i}].content[{j}]")
        for i, message in enumerate(messages)
        if message.role == "user" and i > answered and not isinstance(message.content, str)
        for j, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    ]
    if not found:
        raise bad_request(f"the last user message has no image: send {part_type} parts", field, "image_required")
    return found


class Answering(Protocol):
    """An answer in the words of one of the two APIs."""

    def whole(self, reading: Reading, entries: list[tuple[Entry, ...]]) -> dict[str, Any]:
        """The object for a complete reading; `entries` are the tokens of each of its answers."""
        ...

    def stream(self, reading: Reading) -> AsyncIterator[bytes]:
        """Server-sent events while it is read."""
        ...


async def respond(request: Request, body: Conversation, begin: Callable[[Served, int], Answering]) -> Response:
    """Reads the images of the last turn.

    Args:
        begin: makes the answer for a model and the number of images that it looked at.
    """
    service: Service = request.app.state.service
    served = service.model(body.model)
    sources, options = body.sources(), body.options(served, service.limits)
    reading = await service.read(request.state.context, served, sources, options)
    answer = begin(served, reading.images)
    if body.stream:
        return StreamingResponse(answer.stream(reading), media_type="text/event-stream", headers={"cache-control": "no-store"})
    return reply(answer.whole(reading, await reading.complete()))


def _json_only(request: Request) -> None:
    """Raises ApiError 415 for any other body: `curl -d` alone calls everything a form, which FastAPI then leaves unparsed."""
    if media_type(request) != "application/json":
        raise unsupported_media_type("send JSON with the header Content-Type: application/json")


JSON_ONLY = [Depends(_json_only)]
