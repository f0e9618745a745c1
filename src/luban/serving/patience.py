"""Waiting for what a thread sends, with an end."""

from __future__ import annotations

import asyncio
import time
from typing import TypeVar

from luban.serving.errors import ApiError

Item = TypeVar("Item")


async def received(channel: asyncio.Queue[Item], deadline: float, patience: float | None, request_seconds: float) -> Item | None:
    """The next item of a channel; None after ``patience`` seconds without one. ApiError 504 at the ``deadline``, a time of the monotonic clock."""
    left = deadline - time.monotonic()
    try:
        async with asyncio.timeout(max(0.0, min(left, patience or left))):
            return await channel.get()
    except TimeoutError:
        if time.monotonic() < deadline:
            return None
        raise ApiError(504, "the answer took longer than {seconds} s (request_seconds of this server)", code="timeout", seconds=f"{request_seconds:g}") from None
