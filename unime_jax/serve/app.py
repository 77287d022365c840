"""The server's HTTP: routes, authorization, sizes of bodies, and errors, as a Starlette app."""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from absl import logging
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from unime_jax.serve.errors import RequestError, body_of
from unime_jax.serve.service import Service, health

CLIENT_LEFT = 499  # nginx' status for it; nobody reads the response


def make_app(service: Service, *, api_key: str, created: int) -> Starlette:
    """The app of a service.

    Args:
      api_key: what `Authorization: Bearer <key>` must hold, but for /health; "": nothing.
      created: time of the model, in seconds since 1970.
    """

    async def embeddings(request: Request) -> Response:
        started = time.monotonic()
        try:
            response = await _embed(request, service, api_key)
        except RequestError as error:
            response = _refusal(error)
        except ClientDisconnect:
            response = Response(status_code=CLIENT_LEFT)
        except Exception:
            service.metrics.answered(500, time.monotonic() - started)
            raise
        service.metrics.answered(response.status_code, time.monotonic() - started)
        return response

    def authorized(respond: Callable[[Request], Response]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            try:
                _authorize(request, api_key)
                return respond(request)
            except RequestError as error:
                return _refusal(error)

        return endpoint

    def about() -> dict[str, Any]:
        return {
            "id": service.name,
            "object": "model",
            "created": created,
            "owned_by": "unime_jax",
            "max_model_len": service.model.max_length,
            "dimensions": service.model.kept(None),
        }

    def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [about()]})

    def model(request: Request) -> Response:
        if request.path_params["id"] != service.name:
            raise RequestError(
                f"the model is not here; this server has {json.dumps(service.name)}",
                status=404,
                code="model_not_found",
            )
        return JSONResponse(about())

    async def healthy(_: Request) -> Response:
        status, body = health(service)
        return JSONResponse(body, status)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.get_running_loop().run_in_executor(None, service.close)

    return Starlette(
        routes=[
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/v1/models", authorized(models)),
            Route("/v1/models/{id:path}", authorized(model)),
            Route("/health", healthy),
            Route("/metrics", authorized(lambda _: PlainTextResponse(service.metrics_text()))),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _own_fault},
        lifespan=lifespan,
    )


async def _embed(request: Request, service: Service, api_key: str) -> Response:
    _authorize(request, api_key)
    service.check_open()
    with service.places.held() as take:
        take(1)  # before the body is read, which bounds how many are
        try:
            async with asyncio.timeout(service.limits.body_seconds):
                body = await _body(request, service.limits.body_bytes)
        except TimeoutError as error:
            raise RequestError(
                f"the body was not there within {service.limits.body_seconds} s",
                status=408,
                code="body_timeout",
            ) from error
        task = asyncio.ensure_future(service.answer(body, take))
        gone = asyncio.ensure_future(request.receive())  # after the body, it tells of the end only
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                logging.info("a client has left before its answer")
                return Response(status_code=CLIENT_LEFT)
            return Response(task.result(), media_type="application/json")
        finally:
            task.cancel()
            gone.cancel()


async def _body(request: Request, most: int) -> bytes:
    """The body, of which no more than `most` bytes are read."""

    def too_large(size: str) -> RequestError:
        return RequestError(
            f"the body has {size} bytes, the limit is {most}; send fewer items, or smaller images",
            status=413,
            code="body_too_large",
        )

    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told) > most:
        raise too_large(told)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise too_large(f"more than {most}")
    return bytes(body)


def _authorize(request: Request, api_key: str) -> None:
    if not api_key:
        return
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(key.encode(), api_key.encode()):
        raise RequestError(
            "the API key is wrong or missing; send it as Authorization: Bearer <key>",
            status=401,
            code="invalid_api_key",
        )


def _refusal(error: RequestError) -> Response:
    body = body_of(error.status, str(error), error.param, error.code)
    return JSONResponse(body, error.status, error.headers())


def _http_error(request: Request, error: Exception) -> Response:
    """Of unknown paths and methods."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:100]
    text = {
        404: f"there is nothing at {path}; embeddings are at POST /v1/embeddings",
        405: f"{request.method} is not for {path}",
    }.get(error.status_code, error.detail)
    return JSONResponse(
        body_of(error.status_code, text, None, None), error.status_code, error.headers
    )


def _own_fault(request: Request, error: Exception) -> Response:
    """Of errors that no request should cause; the log has them."""
    text = "the server failed at this request; its log says why"
    return JSONResponse(body_of(500, text, None, None), 500)
