"""POST /v1/ocr: many images, a result each. An image that cannot be read has an error in its place and hinders no other.

As JSON (`images`: data: URLs, or URLs where allowed) or as a form with files.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from annotated_types import MaxLen, MinLen
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from trocr_jax.line import Line
from trocr_jax.reader import Prepared

from .answer import Answer
from .errors import ApiError, bad_request, unsupported_media_type
from .ids import fresh_id
from .options import Options, options_for
from .service import RequestContext, Served, Service
from .sources import RequestImage
from .wire import ERRORS, Beams, Count, Name, Strict, line_object, media_type, now, reply

router = APIRouter()
_FORM_FIELD_BYTES = 4096


class OcrOptions(Strict):
    model: Name | None = None
    num_beams: Beams | None = None
    max_tokens: Count | None = None


class OcrRequest(OcrOptions):
    images: Annotated[list[str], MinLen(1), MaxLen(1024)]


_FORM = {
    "type": "object",
    "required": ["images"],
    "properties": {
        "images": {"type": "array", "items": {"type": "string", "format": "binary"}},
        **OcrOptions.model_json_schema()["properties"],
    },
}
_BODY = {"application/json": {"schema": OcrRequest.model_json_schema()}, "multipart/form-data": {"schema": _FORM}}


@router.post("/v1/ocr", responses=ERRORS, openapi_extra={"requestBody": {"required": True, "content": _BODY}})
async def create(request: Request) -> Response:
    """Reads every image."""
    service: Service = request.app.state.service
    body, sources = await _parse(request, service.limits.images)
    served = service.model(body.model)
    options = options_for(served.engine, service.limits, num_beams=body.num_beams, max_tokens=body.max_tokens)
    results, tokens = await _read(service, request.state.context, served, sources, options)
    prompt_tokens = len(sources) * served.image_tokens
    return reply({
        "id": fresh_id("ocr-"), "object": "ocr.result", "created": now(), "model": served.name, "results": results,
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens},
    })  # fmt: skip


async def _read(
    service: Service, context: RequestContext, served: Served, sources: list[RequestImage], options: Options
) -> tuple[list[dict[str, Any]], int]:
    """A result for each image, and the tokens of all."""
    prepared = await service.prepare(context, served, sources, 1)
    readable = [item for item in prepared if isinstance(item, Prepared)]
    answers: list[Answer] = []
    tokens = 0
    if readable:
        reading = service.submit(context, served, readable, options, together=False)
        await reading.complete()
        answers, tokens = reading.answers, reading.tokens
    left = iter(answers)
    return [_result(index, item if isinstance(item, ApiError) else next(left)) for index, item in enumerate(prepared)], tokens


def _result(index: int, outcome: Answer | ApiError) -> dict[str, Any]:
    if isinstance(outcome, ApiError):
        return {"index": index, **line_object(Line.failed(outcome.message)), "error": outcome.body["error"]}
    return {"index": index, **line_object(outcome.lines[0]), "error": None}


async def _parse(request: Request, most: int) -> tuple[OcrOptions, list[RequestImage]]:
    """Options and images of either kind of body. Raises ApiError 400 or 415."""
    kind = media_type(request)
    if kind == "application/json":
        body = OcrRequest.model_validate(_json(await request.body()))
        return body, [RequestImage(url, f"images[{i}]") for i, url in enumerate(body.images)]
    if kind == "multipart/form-data":
        return await _form(request, most)
    raise unsupported_media_type("send JSON with the header Content-Type: application/json, or a form of files (curl -F)")


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise bad_request("the body is not valid JSON", None, "invalid_json") from None


async def _form(request: Request, most: int) -> tuple[OcrOptions, list[RequestImage]]:
    """Every file is an image, whatever its field is called; the other fields are options."""
    parser = MultiPartParser(
        request.headers, request.stream(), max_files=most, max_fields=len(OcrOptions.model_fields),
        max_part_size=_FORM_FIELD_BYTES,
    )  # fmt: skip
    parser.spool_max_size = 1 << 62  # the body is in memory already: nothing of it goes to a disk
    try:
        form = await parser.parse()
    except (MultiPartException, HTTPException, ValueError, KeyError, AssertionError):
        raise bad_request(f"not a form of at most {most} files", None, "invalid_form") from None
    sources, fields = [], {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            fields[name] = int(value) if name in ("num_beams", "max_tokens") and value.isascii() and value.isdigit() else value
        else:
            sources.append(RequestImage(await value.read(), f"images[{len(sources)}]"))
    await form.close()
    if not sources:
        raise bad_request("the form has no file", "images", "image_required")
    return OcrOptions.model_validate(fields), sources
