"""POST /v1/responses: a `conversation` answered in the words of OpenAI's responses API.

There is no memory: nothing is stored, and nothing stored can be referred to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import MaxLen, MinLen
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Discriminator, Field, Tag

from .answer import Delta, Entry
from .conversation import JSON_ONLY, Conversation, Detail, ImagePart, MessagePart, TextFormat, last_images, respond
from .errors import ApiError, bad_request
from .ids import fresh_id
from .limits import Limits
from .options import Options
from .reading import Reading
from .service import Served
from .sources import RequestImage
from .wire import ERRORS, Count, Echoed, Strict, logprob_objects, now, sse, trocr_object

router = APIRouter()
LOGPROBS = "message.output_text.logprobs"


class InputText(MessagePart):
    type: Literal["input_text"]
    text: str


class InputImage(ImagePart):
    type: Literal["input_image"]
    image_url: str
    detail: Detail | None = None

    def source(self, place: str) -> RequestImage:
        return RequestImage(self.image_url, f"{place}.image_url")


class InputMessage(Strict):
    role: Literal["user"]
    content: str | list[Annotated[InputText | InputImage, Field(discriminator="type")]]
    type: Literal["message"] | None = None
    id: str | None = None
    status: str | None = None


class OtherItem(BaseModel):
    """Instructions and earlier answers, of which nothing can be obeyed and nothing else is kept."""

    role: Literal["system", "developer", "assistant"]
    type: Literal["message"] | None = None


class WorkItem(BaseModel):
    """What came before an earlier answer."""

    role: ClassVar[str] = "tool"
    type: Literal["reasoning", "function_call", "function_call_output"]


def _kind(item: Any) -> str | None:
    """Which class an item is: messages have a role, and need no type."""
    match item:
        case {"role": "user"}:
            return "user"
        case {"role": "system" | "developer" | "assistant"}:
            return "other"
        case {"type": "reasoning" | "function_call" | "function_call_output"}:
            return "work"
    return None


Item = Annotated[
    Annotated[InputMessage, Tag("user")] | Annotated[OtherItem, Tag("other")] | Annotated[WorkItem, Tag("work")],
    Discriminator(_kind),
]


class TextConfig(Strict):
    format: TextFormat | None = None
    verbosity: str | None = None


class StreamOptions(Strict):
    include_obfuscation: bool | None = None


class ResponsesRequest(Conversation):
    input: str | Annotated[list[Item], MinLen(1), MaxLen(1000)]
    stream_options: StreamOptions | None = None
    include: Annotated[list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]], MaxLen(2)] | None = None
    max_output_tokens: Count | None = None
    # whatever the values of these, the same text is read
    instructions: Echoed | None = None
    reasoning: dict[str, Any] | None = None
    max_tool_calls: int | None = None
    truncation: Literal["auto", "disabled"] | None = None
    # these would ask for what is not done here: only values that ask for nothing are accepted
    background: Literal[False] | None = None
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None
    text: TextConfig | None = None

    def sources(self) -> list[RequestImage]:
        return last_images([] if isinstance(self.input, str) else self.input, "input", "input_image")

    @property
    def logprobs(self) -> bool:
        """Whether log-probabilities are wanted. `include` may also ask for reasoning, of which there is none."""
        return LOGPROBS in (self.include or ())

    def options(self, served: Served, limits: Limits) -> Options:
        if self.top_logprobs and not self.logprobs:
            raise bad_request(f"top_logprobs needs include: ['{LOGPROBS}']", "top_logprobs")
        return self._options(served, limits, max_tokens=self.max_output_tokens, detailed=self.logprobs)


@router.post("/v1/responses", responses=ERRORS, dependencies=JSON_ONLY)
async def create(body: ResponsesRequest, request: Request) -> Response:
    """Reads the images of the last turn."""
    return await respond(request, body, partial(_Response, body))


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
            "previous_response_id": None, "store": False, "temperature": body.temperature or 0.0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "text": {"format": {"type": "text"}}, "tool_choice": "none", "tools": [], "truncation": "disabled", **more,
        }  # fmt: skip

    def whole(self, reading: Reading, entries: list[tuple[Entry, ...]]) -> dict[str, Any]:
        answer = reading.answers[0]
        cut = answer.finish_reason == "length"
        status, incomplete = ("incomplete", {"reason": "max_output_tokens"}) if cut else ("completed", None)
        item = self.item(status, [self.part(answer.text, entries[0])])
        more = {"completed_at": now(), "trocr": trocr_object(answer)}
        return self.object(status, [item], usage=self.usage(reading), incomplete_details=incomplete, **more)

    def item(self, status: str, content: list[Any]) -> dict[str, Any]:
        return {"type": "message", "id": self.item_id, "role": "assistant", "status": status, "content": content}

    def part(self, text: str, entries: tuple[Entry, ...]) -> dict[str, Any]:
        part = {"type": "output_text", "text": text, "annotations": []}
        return {**part, "logprobs": logprob_objects(entries)} if self.body.logprobs else part

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
        final = self.whole(reading, [entries])
        item = final["output"][0]
        text, logprobs = reading.answers[0].text, self.logprobs(Delta("", entries))
        yield self.event("response.output_text.done", **place, text=text, logprobs=logprobs)
        yield self.event("response.content_part.done", **place, part=item["content"][0])
        yield self.event("response.output_item.done", output_index=0, item=item)
        yield self.event(f"response.{final['status']}", response=final)

    def logprobs(self, delta: Delta) -> list[dict[str, Any]]:
        return logprob_objects(delta.entries) if self.body.logprobs else []

    def event(self, kind: str, **fields: Any) -> bytes:
        content = {"type": kind, "sequence_number": self.number, **fields}
        self.number += 1
        return sse(content, kind)
