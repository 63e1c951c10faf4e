"""POST /v1/chat/completions.

The images of the last turn (the user messages after the last answer) are read, in order, and their lines joined with newlines.
Texts of any message are accepted and have no influence: TrOCR reads, it does not listen. Fields that would have one and cannot
be obeyed are refused by name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from annotated_types import MaxLen, MinLen
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field

from .errors import ApiError, bad_request
from .ids import fresh_id
from .reading import Answer, Entry, Reading
from .service import Options, Served, Service, options_for
from .sources import Source
from .wire import (
    ERRORS,
    Count,
    Empty,
    Name,
    Nothing,
    Seed,
    Strict,
    Temperature,
    TopLogprobs,
    TopP,
    TrocrOptions,
    Zero,
    line_object,
    logprob_objects,
    now,
    reply,
    sse,
)  # fmt: skip

router = APIRouter()


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


class UserMessage(Strict):
    role: Literal["user"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]
    name: str | None = None


class OtherMessage(BaseModel):
    """Instructions and earlier answers: there is nothing in them that could be obeyed, whatever they hold."""

    role: Literal["system", "developer", "assistant"]
    content: Any = None


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TextFormat(Strict):
    type: Literal["text"]


Stop = Annotated[str, MinLen(1), MaxLen(64)]


class ChatRequest(Strict):
    model: Name
    messages: Annotated[list[Annotated[UserMessage | OtherMessage, Field(discriminator="role")]], MinLen(1), MaxLen(1000)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    n: Count | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stop: Stop | Annotated[list[Stop], MaxLen(4)] | None = None
    seed: Seed | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    trocr: TrocrOptions | None = None
    # fields without influence on what is read
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: str | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    # fields that only their neutral values are accepted of
    store: Literal[False] | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Nothing | None = None
    modalities: Annotated[list[Literal["text"]], MinLen(1), MaxLen(1)] | None = None
    response_format: TextFormat | None = None
    tools: Empty | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Empty | None = None
    function_call: Literal["none", "auto"] | None = None

    def sources(self) -> list[Source]:
        """The images of the last turn. Raises ApiError 400 where there are none."""
        answered = max((i for i, message in enumerate(self.messages) if message.role == "assistant"), default=-1)
        found = [
            Source(part.image_url.url, f"messages[{i}].content[{j}].image_url.url")
            for i, message in enumerate(self.messages)
            if isinstance(message, UserMessage) and i > answered and not isinstance(message.content, str)
            for j, part in enumerate(message.content)
            if isinstance(part, ImagePart)
        ]
        if not found:
            raise bad_request("the last user message has no image: send image_url parts", "messages", "image_required")
        return found

    def options(self, served: Served, service: Service) -> Options:
        """Raises ApiError 400 for fields that contradict each other or the server."""
        if self.top_logprobs is not None and not self.logprobs:
            raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise bad_request("stream_options needs stream: true", "stream_options")
        budgets = [budget for budget in (self.max_tokens, self.max_completion_tokens) if budget is not None]
        return options_for(
            served, service.limits, temperature=self.temperature, top_p=self.top_p, seed=self.seed, n=self.n,
            max_tokens=min(budgets, default=None), num_beams=self.trocr.num_beams if self.trocr else None,
            top_logprobs=self.top_logprobs or 0, stops=[self.stop] if isinstance(self.stop, str) else self.stop or (),
            detailed=bool(self.logprobs), stream=bool(self.stream),
        )  # fmt: skip


@router.post("/v1/chat/completions", responses=ERRORS)
async def create(body: ChatRequest, request: Request) -> Response:
    """Reads the images of the last turn."""
    service: Service = request.app.state.service
    served = service.model(body.model)
    sources, options = body.sources(), body.options(served, service)
    reading = await service.read(request.state.visit, served, sources, options)
    chat = _Chat(body, served, len(sources))
    if body.stream:
        return StreamingResponse(chat.stream(reading), media_type="text/event-stream", headers={"cache-control": "no-store"})
    return reply(chat.completion(reading, await reading.complete()))


class _Chat:
    """One conversation's answer in the words of the API."""

    def __init__(self, body: ChatRequest, served: Served, images: int):
        self.body, self.prompt_tokens = body, images * served.image_tokens
        self.head = {"id": fresh_id("chatcmpl-"), "created": now(), "model": served.name, "system_fingerprint": "trocr-jax"}

    def completion(self, reading: Reading, entries: list[tuple[Entry, ...]]) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "finish_reason": answer.finish_reason,
                "logprobs": self.logprobs(entries[index]),
                "trocr": trocr_object(answer),
            }
            for index, answer in enumerate(reading.answers)
        ]
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": self.usage(reading)}

    async def stream(self, reading: Reading) -> AsyncIterator[bytes]:
        """Chunks; an error on the way is a chunk with an `error`."""
        for index in range(len(reading.answers)):
            yield self.chunk([_delta(index, {"role": "assistant", "content": "", "refusal": None})])
        try:
            async for index, delta in reading.deltas():
                if delta.text or delta.entries:
                    yield self.chunk([{**_delta(index, {"content": delta.text}), "logprobs": self.logprobs(delta.entries)}])
                answer = reading.answers[index]
                if answer.finish_reason is not None:
                    yield self.chunk([{**_delta(index, {}, answer.finish_reason), "trocr": trocr_object(answer)}])
        except ApiError as error:
            yield b"data: " + error.encode() + b"\n\n"
            return
        if self.wants_usage:
            yield self.chunk([], self.usage(reading))
        yield b"data: [DONE]\n\n"

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        content = {**self.head, "object": "chat.completion.chunk", "choices": choices}
        return sse({**content, "usage": usage} if self.wants_usage else content)

    def logprobs(self, entries: tuple[Entry, ...]) -> dict[str, Any] | None:
        return {"content": logprob_objects(entries), "refusal": None} if self.body.logprobs else None

    def usage(self, reading: Reading) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": reading.tokens,
            "total_tokens": self.prompt_tokens + reading.tokens,
            "prompt_tokens_details": {"image_tokens": self.prompt_tokens, "cached_tokens": 0},
        }

    @property
    def wants_usage(self) -> bool:
        return bool(self.body.stream_options and self.body.stream_options.include_usage)


def trocr_object(answer: Answer) -> dict[str, Any]:
    """What OpenAI's objects have no place for: every line by itself, with its words and their confidence."""
    return {"lines": [line_object(line) for line in answer.lines]}


def _delta(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
