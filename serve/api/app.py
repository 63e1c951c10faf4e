"""The routes as one application, and what it says when something is wrong."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from trocr_jax.cli import package_version

from . import chat, metrics, ocr, responses
from .errors import ApiError, from_validation, internal
from .guard import Guard
from .service import Served, Service
from .wire import ERRORS

PAGE = Path(__file__).parent / "page.html"


def create_app(service: Service, *, local_only: bool = False) -> Guard:
    """The ASGI application of a server.

    Args:
        local_only: answer only to requests that address localhost by name.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="trocr-jax", version=package_version(), lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False,
    )  # fmt: skip
    app.state.service = service
    for error in (ApiError, RequestValidationError, ValidationError, HTTPException, Exception):
        app.add_exception_handler(error, _answer)
    routers = chat.router, responses.router, ocr.router
    _add_models(app, service)
    _add_operation(app, service)
    paths = [str(getattr(route, "path", "")) for routes in (app, *routers) for route in routes.routes]
    for router in routers:
        app.include_router(router)
    return Guard(app, service, paths, local_only=local_only)


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", responses=ERRORS)
    async def models() -> dict[str, Any]:
        """The models by name, the default one first."""
        return {"object": "list", "data": [_model(served) for served in service.models.values()]}

    @app.get("/v1/models/{name:path}", responses=ERRORS)
    async def model(name: str) -> dict[str, Any]:
        """One model."""
        return _model(service.model(name))


def _model(served: Served) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "trocr-jax"}


def _add_operation(app: FastAPI, service: Service) -> None:
    probe: Any = {"methods": ["GET", "HEAD"], "include_in_schema": False}  # balancers ask by HEAD as well

    @app.api_route("/healthz", **probe)
    async def healthz() -> Response:
        """The process lives; also while it compiles."""
        return PlainTextResponse("failed" if service.state == "failed" else "ok", 500 if service.state == "failed" else 200)

    @app.api_route("/readyz", **probe)
    async def readyz() -> Response:
        """Every program is compiled and nobody has asked the server to stop."""
        return PlainTextResponse(service.state, 200 if service.state == "ready" else 503)

    @app.get("/metrics", include_in_schema=False)
    async def show_metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.render(), media_type=metrics.CONTENT_TYPE)

    @app.api_route("/", **probe)
    async def page() -> Response:
        """The page for people."""
        content, policy = _page()
        headers = {"content-security-policy": policy, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
        return HTMLResponse(content, headers=headers)


@cache
def _page() -> tuple[str, str]:
    """The page, and the policy that lets a browser run its own script and style and nothing else."""
    content = PAGE.read_text(encoding="utf-8")

    def digests(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", content, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'" for block in blocks)

    policy = (
        f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return content, policy


async def _answer(request: Request, error: Exception) -> Response:
    """Any exception as an error object. Nothing of a foreign exception's text gets into it."""
    known = _known(error)
    request.state.context.refusal = known.code
    allowed = error.headers if isinstance(error, HTTPException) else None  # of 405 the methods
    return JSONResponse(known.body, known.status, {**known.headers, **(allowed or {})})


def _known(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError | ValidationError):
        return from_validation(error.errors())
    if isinstance(error, HTTPException) and error.status_code < 500:
        codes = {404: "not_found", 405: "method_not_allowed"}
        messages = {404: "no such path here", 405: "not with this method"}
        status = error.status_code
        return ApiError(status, messages.get(status, "the request is malformed"), codes.get(status, "bad_request"))
    return internal()
