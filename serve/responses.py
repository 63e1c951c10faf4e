"""POST /v1/responses, without a memory: nothing is stored, and nothing stored can be referred to.

Images and texts are treated as in `chat`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from annotated_types import MaxLen, MinLen
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field

from .chat import TextFormat, trocr_object
from .errors import ApiError, bad_request
from .ids import fresh_id
from .reading import Delta, Entry, Reading
from .service import Options, Served, Service, options_for
from .sources import Source
from .wire import (
    ERRORS,
    Count,
    Empty,
    Name,
    Strict,
    Temperature,
    TopLogprobs,
    TopP,
    TrocrOptions,
    logprob_objects,
    now,
    reply,
    sse,
)  # fmt: skip

router = APIRouter()


class InputText(Strict):
    type: Literal["input_text"]
    text: str


class InputImage(Strict):
    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class InputMessage(Strict):
    role: Literal["user"]
    content: str | list[Annotated[InputText | InputImage, Field(discriminator="type")]]
    type: Literal["message"] | None = None
    id: str | None = None
    status: str | None = None


class OtherItem(BaseModel):
    """Instructions and earlier answers, of which nothing can be obeyed."""

    role: Literal["system", "developer", "assistant"]
    type: Literal["message"] | None = None
    content: Any = None


class TextConfig(Strict):
    format: TextFormat | None = None
    verbosity: str | None = None


class StreamOptions(Strict):
    include_obfuscation: bool | None = None


class ResponsesRequest(Strict):
    model: Name
    input: str | Annotated[list[Annotated[InputMessage | OtherItem, Field(discriminator="role")]], MinLen(1), MaxLen(1000)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    include: Annotated[list[Literal["message.output_text.logprobs"]], MaxLen(1)] | None = None
    top_logprobs: TopLogprobs | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    trocr: TrocrOptions | None = None
    # fields without influence on what is read
    instructions: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: Literal["auto", "default"] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    max_tool_calls: int | None = None
    truncation: Literal["auto", "disabled"] | None = None
    # fields that only their neutral values are accepted of
    store: Literal[False] | None = None
    background: Literal[False] | None = None
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None
    text: TextConfig | None = None
    tools: Empty | None = None
    tool_choice: Literal["none", "auto"] | None = None

    def sources(self) -> list[Source]:
        """The images of the last turn. Raises ApiError 400 where there are none."""
        items = [] if isinstance(self.input, str) else self.input
        answered = max((i for i, item in enumerate(items) if item.role == "assistant"), default=-1)
        found = [
            Source(part.image_url, f"input[{i}].content[{j}].image_url")
            for i, item in enumerate(items)
            if isinstance(item, InputMessage) and i > answered and not isinstance(item.content, str)
            for j, part in enumerate(item.content)
            if isinstance(part, InputImage)
        ]
        if not found:
            raise bad_request("the last user message has no image: send input_image parts", "input", "image_required")
        return found

    def options(self, served: Served, service: Service) -> Options:
        """Raises ApiError 400 for fields that contradict each other or the server."""
        if self.top_logprobs and not self.include:
            raise bad_request("top_logprobs needs include: ['message.output_text.logprobs']", "top_logprobs")
        return options_for(
            served, service.limits, temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_output_tokens,
            num_beams=self.trocr.num_beams if self.trocr else None, top_logprobs=self.top_logprobs or 0,
            detailed=bool(self.include), stream=bool(self.stream),
        )  # fmt: skip


@router.post("/v1/responses", responses=ERRORS)
async def create(body: ResponsesRequest, request: Request) -> Response:
    """Reads the images of the last turn."""
    service: Service = request.app.state.service
    served = service.model(body.model)
    sources, options = body.sources(), body.options(served, service)
    reading = await service.read(request.state.visit, served, sources, options)
    response = _Response(body, served, len(sources))
    if body.stream:
        return StreamingResponse(response.stream(reading), media_type="text/event-stream", headers={"cache-control": "no-store"})
    return reply(response.done(reading, (await reading.complete())[0]))


class _Response:
    """One response as it grows."""

    def __init__(self, body: ResponsesRequest, served: Served, images: int):
        self.body, self.served, self.input_tokens = body, served, images * served.image_tokens
        self.id, self.item_id, self.created = fresh_id("resp_"), fresh_id("msg_"), now()
        self.number = 0

    def object(self, status: str, output: list[Any], **more: Any) -> dict[str, Any]:
        """The response; `more`: usage, incomplete_details, error."""
        body = self.body
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "model": self.served.name,
            "output": output, "usage": None, "error": None, "incomplete_details": None, "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens, "metadata": body.metadata or {}, "parallel_tool_calls": False,
            "previous_response_id": None, "store": False, "temperature": body.temperature or 0.0, "top_p": body.top_p or 1.0,
            "text": {"format": {"type": "text"}}, "tool_choice": "none", "tools": [], "truncation": "disabled", **more,
        }  # fmt: skip

    def done(self, reading: Reading, entries: tuple[Entry, ...]) -> dict[str, Any]:
        answer = reading.answers[0]
        cut = answer.finish_reason == "length"
        status, incomplete = ("incomplete", {"reason": "max_output_tokens"}) if cut else ("completed", None)
        item = self.item(status, [self.part(answer.text, entries)])
        more = {"completed_at": now(), "trocr": trocr_object(answer)}
        return self.object(status, [item], usage=self.usage(reading), incomplete_details=incomplete, **more)

    def item(self, status: str, content: list[Any]) -> dict[str, Any]:
        return {"type": "message", "id": self.item_id, "role": "assistant", "status": status, "content": content}

    def part(self, text: str, entries: tuple[Entry, ...]) -> dict[str, Any]:
        part = {"type": "output_text", "text": text, "annotations": []}
        return {**part, "logprobs": logprob_objects(entries)} if self.body.include else part

    def usage(self, reading: Reading) -> dict[str, Any]:
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": reading.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.input_tokens + reading.tokens,
        }

    async def stream(self, reading: Reading) -> AsyncIterator[bytes]:
        """Events as OpenAI numbers and nests them."""
        place = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
        for kind in ("response.created", "response.in_progress"):
            yield self.event(kind, response=self.object("in_progress", []))
        yield self.event("response.output_item.added", output_index=0, item=self.item("in_progress", []))
        yield self.event("response.content_part.added", **place, part=self.part("", ()))
        entries: tuple[Entry, ...] = ()
        try:
            async for _, delta in reading.deltas():
                entries += delta.entries
                if delta.text or delta.entries:
                    yield self.event("response.output_text.delta", **place, delta=delta.text, logprobs=self.logprobs(delta))
        except ApiError as error:
            failure = {"code": "server_error", "message": error.message}
            yield self.event("response.failed", response=self.object("failed", [], error=failure))
            return
        final = self.done(reading, entries)
        item = final["output"][0]
        text, logprobs = reading.answers[0].text, self.logprobs(Delta("", entries))
        yield self.event("response.output_text.done", **place, text=text, logprobs=logprobs)
        yield self.event("response.content_part.done", **place, part=item["content"][0])
        yield self.event("response.output_item.done", output_index=0, item=item)
        yield self.event(f"response.{final['status']}", response=final)

    def logprobs(self, delta: Delta) -> list[dict[str, Any]]:
        return logprob_objects(delta.entries) if self.body.include else []

    def event(self, kind: str, **fields: Any) -> bytes:
        content = {"type": kind, "sequence_number": self.number, **fields}
        self.number += 1
        return sse(content, kind)
