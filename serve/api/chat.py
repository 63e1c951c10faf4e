"""POST /v1/chat/completions: a `conversation` answered in the words of OpenAI's chat API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, Literal

from annotated_types import MaxLen, MinLen
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from .answer import Entry
from .conversation import JSON_ONLY, Conversation, Detail, ImagePart, MessagePart, TextFormat, last_images, respond
from .errors import ApiError, bad_request
from .ids import fresh_id
from .limits import Limits
from .options import Options
from .reading import Reading
from .service import Served
from .sources import RequestImage
from .wire import ERRORS, Count, Empty, Nothing, Seed, Strict, Zero, logprob_objects, now, sse, trocr_object

router = APIRouter()


class TextPart(MessagePart):
    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    url: str
    detail: Detail | None = None


class ImageUrlPart(ImagePart):
    type: Literal["image_url"]
    image_url: ImageUrl

    def source(self, place: str) -> RequestImage:
        return RequestImage(self.image_url.url, f"{place}.image_url.url")


class UserMessage(Strict):
    role: Literal["user"]
    content: str | list[Annotated[TextPart | ImageUrlPart, Field(discriminator="type")]]
    name: str | None = None


class OtherMessage(BaseModel):
    """Instructions, and earlier answers with what tools said to them: nothing in them could be obeyed, nothing else is kept."""

    role: Literal["system", "developer", "assistant", "tool", "function"]


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


Stop = Annotated[str, MinLen(1), MaxLen(64)]


class ChatRequest(Conversation):
    messages: Annotated[list[Annotated[UserMessage | OtherMessage, Field(discriminator="role")]], MinLen(1), MaxLen(1000)]
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    n: Count | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stop: Stop | Annotated[list[Stop], MaxLen(4)] | None = None
    seed: Seed | None = None
    # whatever the values of these, the same text is read
    reasoning_effort: str | None = None
    verbosity: str | None = None
    # these would ask for what is not done here: only values that ask for nothing are accepted
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Nothing | None = None
    modalities: Annotated[list[Literal["text"]], MinLen(1), MaxLen(1)] | None = None
    response_format: TextFormat | None = None
    functions: Empty | None = None
    function_call: Literal["none", "auto"] | None = None

    def sources(self) -> list[RequestImage]:
        return last_images(self.messages, "messages", "image_url")

    def options(self, served: Served, limits: Limits) -> Options:
        if self.top_logprobs is not None and not self.logprobs:
            raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise bad_request("stream_options needs stream: true", "stream_options")
        budgets = [budget for budget in (self.max_tokens, self.max_completion_tokens) if budget is not None]
        return self._options(
            served, limits, seed=self.seed, n=self.n, max_tokens=min(budgets, default=None),
            stops=[self.stop] if isinstance(self.stop, str) else self.stop or (), detailed=bool(self.logprobs),
        )  # fmt: skip


@router.post("/v1/chat/completions", responses=ERRORS, dependencies=JSON_ONLY)
async def create(body: ChatRequest, request: Request) -> Response:
    """Reads the images of the last turn."""
    return await respond(request, body, partial(_Chat, body))


class _Chat:
    """One conversation's answer in the words of the API."""

    def __init__(self, body: ChatRequest, served: Served, images: int):
        self.body, self.prompt_tokens = body, images * served.image_tokens
        self.head = {"id": fresh_id("chatcmpl-"), "created": now(), "model": served.name, "system_fingerprint": "trocr-jax"}

    def whole(self, reading: Reading, entries: list[tuple[Entry, ...]]) -> dict[str, Any]:
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


def _delta(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
