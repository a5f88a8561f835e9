"""The files and objects of OpenAI's batch protocol: input lines written, jobs and output lines read. Pure functions.

Like every answer they are untrusted, and checked field by field.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Final

from pydantic import JsonValue

from cowest.ledger.ledger import Call
from cowest.models.failures import EndpointError, check_status
from cowest.models.replies import read_payload, without_secrets
from cowest.models.secrets import Secrets
from cowest.models.transport import HttpReply
from cowest.models.untrusted import field
from cowest.types import Attempt, Completion, Sampling

ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled"})
ANSWER_BYTES: Final = 2048
"""What a line of the output file holds beside the text."""
TOKEN_BYTES: Final = 6
"""Of a token in it, escaped."""
LOGPROB_BYTES: Final = 200
"""Of a token's log-probability, and of each of its alternatives."""


def input_line(key: str, body: Mapping[str, JsonValue]) -> bytes:
    """A request in the input file."""
    line = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def answer_bytes(sampling: Sampling) -> int:
    """About the most that the answer will take in the output file."""
    logprobs = 0 if sampling.logprobs is None else LOGPROB_BYTES * (1 + sampling.logprobs)
    return ANSWER_BYTES + sampling.max_tokens * (TOKEN_BYTES + logprobs)


def read_object(reply: HttpReply) -> Mapping[str, object]:
    """The JSON object in an answer of the batch API. Raises EndpointError for anything else."""
    found = loads(reply.body)
    if not isinstance(found, dict):
        quote = reply.body.decode("utf-8", "replace")
        raise EndpointError("bad_response", "the batch API answered no JSON object", retry=True, quote=quote)
    return found


def read_lines(reply: HttpReply) -> dict[str, bytes]:
    """The lines of an output or error file by their key, whatever their order.

    Raises EndpointError for a file that holds none: a page of some proxy must not pass for a batch without answers.
    """
    lines: dict[str, bytes] = {}
    for raw in reply.body.split(b"\n"):  # not splitlines: a text may hold U+2028 as it is
        key = field(loads(raw), "custom_id")
        if isinstance(key, str):
            lines.setdefault(key, raw)
    if not lines and reply.body.strip():
        quote = reply.body.decode("utf-8", "replace")
        raise EndpointError("bad_response", "the batch's file holds no answers", retry=True, quote=quote)
    return lines


def read_answer(raw: bytes, call: Call, secrets: Secrets) -> Completion:
    """The completion in a line of the output file. Raises EndpointError for a request that failed."""
    line = loads(raw)
    response, error = field(line, "response"), field(line, "error")
    if not isinstance(response, dict):
        code, message = field(error, "code"), field(error, "message")
        kind = code if isinstance(code, str) and code.isidentifier() else "failed"
        kind = kind if kind.startswith("batch_") else f"batch_{kind}"
        quote = message if isinstance(message, str) else raw.decode("utf-8", "replace")
        raise EndpointError(kind, "the batch did not answer the request", retry=True, quote=quote)
    status, body = response.get("status_code"), response.get("body")
    check_status(status if isinstance(status, int) else 500, json.dumps(body).encode())
    limit = call.most.output_tokens or None  # unknown of a call that an earlier process made
    reply = read_payload(body, raw.decode("utf-8", "replace"), call.most.input_tokens, limit)
    reply = without_secrets(reply, secrets)
    first = reply.choices[0]
    return Completion(
        text=first.text,
        thinking=first.thinking,
        finish_reason=first.finish_reason,
        usage=reply.usage,
        logprobs=first.logprobs,
        attempts=(Attempt(at=time.time(), latency_s=0.0, outcome="ok", usage=reply.usage),),
    )


def files_of(job: Mapping[str, object]) -> list[str]:
    """The job's output file, then its error file, where they are."""
    named = (field(job, name) for name in ("output_file_id", "error_file_id"))
    return [name for name in named if isinstance(name, str) and name]


def problems(job: Mapping[str, object]) -> str:
    """What a failed job says of its input, line by line."""
    found = field(field(job, "errors"), "data")
    told = [
        f"line {field(e, 'line')}: {field(e, 'message')}" if field(e, "line") else str(field(e, "message"))
        for e in (found if isinstance(found, list) else ())
    ]
    return "; ".join(told)


def text_of(found: object, key: str) -> str:
    """A field that has to be there. Raises EndpointError where it is not."""
    value = field(found, key)
    if not isinstance(value, str) or not value:
        raise EndpointError("bad_response", f"the batch API's answer has no {key}", retry=True, quote=str(found))
    return value


def loads(raw: bytes) -> object:
    """Decoded JSON; None for what is none."""
    try:
        found: object = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return found
