"""POST /v1/ocr: many images, a result each: the line that it shows or, of a page, all that are found there with their places.
An image that cannot be read has an error in its place and hinders no other.

As JSON (`images`: data: URLs, or URLs where allowed) or as a form with files.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

from annotated_types import MaxLen, MinLen
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from trocr_jax.line import Line
from trocr_jax.page import is_lost
from trocr_jax.pages.formats import with_boxes

from .errors import ApiError, bad_request, unsupported_media_type
from .ids import fresh_id
from .options import Options, options_for
from .pictures import Picture
from .reading import Reading
from .service import RequestContext, Served, Service
from .sources import RequestImage
from .wire import ERRORS, Beams, Count, Name, Strict, line_object, media_type, now, reply

router = APIRouter()
_FORM_FIELD_BYTES = 4096


class OcrOptions(Strict):
    model: Name | None = None
    num_beams: Beams | None = None
    max_tokens: Count | None = None
    page: bool | None = None


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
    if query := next(iter(request.query_params), None):
        raise bad_request("options belong into the body, not behind the URL's ?", query[:80], "unsupported_parameter")
    body, sources = await _parse(request, service.limits.images)
    served = service.model(body.model)
    options = options_for(
        served.engine, service.limits, num_beams=body.num_beams, max_tokens=body.max_tokens, page=bool(body.page)
    )
    results, reading = await _read(service, request.state.context, served, sources, options)
    prompt_tokens = reading.images * served.image_tokens
    return reply({
        "id": fresh_id("ocr-"), "object": "ocr.result", "created": now(), "model": served.name, "results": results,
        "usage": {
            "prompt_tokens": prompt_tokens, "completion_tokens": reading.tokens, "total_tokens": prompt_tokens + reading.tokens
        },
    })  # fmt: skip


async def _read(
    service: Service, context: RequestContext, served: Served, sources: list[RequestImage], options: Options
) -> tuple[list[dict[str, Any]], Reading]:
    """A result for each image, and the reading of all."""
    pictures = await service.prepare(context, served, sources, options)
    lines = [line for picture in pictures if isinstance(picture, Picture) for line in picture.lines]
    reading = service.submit(context, served, lines, options, together=False)
    await reading.complete()
    found = [answer.lines[0] for answer in reading.answers]
    return await asyncio.to_thread(_results, pictures, found, options), reading  # of thousands of lines they take a second


def _results(pictures: list[Picture | ApiError], lines: list[Line], options: Options) -> list[dict[str, Any]]:
    left, result = iter(lines), _page_result if options.page else _line_result
    return [{"index": index, **result(picture, left)} for index, picture in enumerate(pictures)]


def _line_result(picture: Picture | ApiError, lines: Iterator[Line]) -> dict[str, Any]:
    if isinstance(picture, ApiError):
        return {**line_object(Line.failed(picture.message)), "error": picture.body["error"]}
    return {**line_object(next(lines)), "error": None}


def _page_result(picture: Picture | ApiError, lines: Iterator[Line]) -> dict[str, Any]:
    """A page's text with a line a row, its size in pixels, whether hardly any line could be read, as of one on its side, and its
    lines, each with its outline, the box around that, and the boxes of its words.
    """
    if isinstance(picture, ApiError):
        return {"text": "", "width": None, "height": None, "lost": False, "lines": [], "error": picture.body["error"]}
    assert picture.layout is not None
    page = picture.layout.page(list(islice(lines, len(picture.lines))))
    found = [with_boxes(line, line_object(line.line)) for line in page.lines]
    text = "\n".join(line.line.text for line in page.lines)
    return {"text": text, "width": page.width, "height": page.height, "lost": is_lost(page), "lines": found, "error": None}


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
            fields[name] = _from_form(name, value)
        else:
            sources.append(RequestImage(await value.read(), f"images[{len(sources)}]"))
    await form.close()
    if not sources:
        raise bad_request("the form has no file", "images", "image_required")
    return OcrOptions.model_validate(fields), sources


def _from_form(name: str, text: str) -> Any:
    """A form's field as JSON would have it; as text where it is none, for the error that names it."""
    if name in ("num_beams", "max_tokens") and text.isascii() and text.isdigit():
        return int(text)
    return {"true": True, "false": False}.get(text, text) if name == "page" else text
