"""What all routes share: reading a body that may be too large or too slow, and answering a client that may leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from luban.serving.errors import ApiError

BODY_SECONDS = 30.0  # in which a request's body must have arrived
PING_SECONDS = 10.0  # between comments on a silent stream, so that proxies keep it open


class JSONResponse(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, if it is not too large and comes in time."""

    def too_large() -> ApiError:
        return ApiError(413, "the body is larger than the {limit} bytes that this server reads", code="body_too_large", limit=limit)

    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:19]) > limit:
        raise too_large()
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise too_large()
                parts.append(part)
    except TimeoutError:
        raise ApiError(408, "the body did not arrive within {seconds} s", code="timeout", seconds=f"{BODY_SECONDS:g}") from None
    return b"".join(parts)


async def while_connected(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """What ``work`` returns. Raises ClientDisconnect, and ends it, if the client leaves first."""
    gathering, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_until_disconnect(request))
    try:
        await asyncio.wait((gathering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not gathering.done():
            raise ClientDisconnect
        return gathering.result()
    finally:
        for task in (gathering, leaving):
            task.cancel()
        await asyncio.gather(gathering, leaving, return_exceptions=True)


async def _until_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
