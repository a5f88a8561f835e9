"""What a client of ours is told in place of an answer, in OpenAI's shape."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import JsonValue


class ApiError(Exception):
    """An answer other than 200. The message is for the client: it holds no secret and no text of a model."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type_: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.param, self.code = status, type_, param, code
        self.headers = dict(headers or {})

    def payload(self) -> dict[str, JsonValue]:
        """The JSON that OpenAI's clients expect."""
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        """The same as bytes."""
        return json.dumps(self.payload()).encode()
