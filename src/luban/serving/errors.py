"""Errors as OpenAI's clients expect them: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from typing import Any

from luban.foundation.messages import t

_TYPES = {
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """A refusal with its HTTP status. ``template`` and ``values`` make the message; ``param`` names the field."""

    def __init__(
        self,
        status: int,
        template: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        **values: object,
    ):
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after
        self.message = t(template, param=param, **values)
        super().__init__(self.message)

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        return {"retry-after": str(self.retry_after)} if self.retry_after is not None else {}


def unsupported(param: str) -> ApiError:
    """A parameter of OpenAI's that would change the answer and that Luban does not have: named, never ignored."""
    return ApiError(400, "{param} is not supported by this server", param=param, code="unsupported_parameter")
