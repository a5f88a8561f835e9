"""Failures: those that a client is told of, in OpenAI's shape, and those of a model, which a policy may bridge."""

from __future__ import annotations

from typing import Final

from cowest.models.api_error import ApiError

__all__ = ["CLIENT_GONE", "ApiError", "Unavailable"]

CLIENT_GONE: Final = 499
"""The status in logs and metrics of a request whose client left before its answer; no one receives it."""


class Unavailable(Exception):
    """A model gave no answer, and not for a fault of the request.

    ``down`` is what its breaker learns (an overloaded model is not down; None: nothing); ``retry``: another attempt may do better.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        down: bool | None = True,
        retry: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind, self.down, self.retry, self.retry_after_s = kind, down, retry, retry_after_s

    def for_client(self) -> ApiError:
        """What a client is told where no other model may answer in its place."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(max(1, round(self.retry_after_s)))}
        if self.kind == "http_429":
            return ApiError(429, str(self), type_="rate_limit_error", code="rate_limit_exceeded", headers=headers)
        status = {"timeout": 504, "stalled": 504, "breaker_open": 503, "connection": 503, "dns": 503}.get(
            self.kind, 502
        )
        return ApiError(status, str(self), type_="upstream_error", code=self.kind, headers=headers)
