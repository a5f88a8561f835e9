"""What an operator decides: limits, deadlines, and what happens when a model is down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in seconds; the limits are on what one client may send or ask for.

    ``concurrency`` requests are worked on at once and ``queue`` more may wait; what comes beyond is answered 429.
    ``rate_per_minute`` is for each key (None: no limit). ``cors_origin`` None sends no CORS header at all.
    """

    strong_down: Literal["weak", "error"] = "weak"
    draft_deadline_s: float = 10.0
    deadline_s: float = 120.0
    write_timeout_s: float = 60.0
    concurrency: int = 64
    queue: int = 256
    rate_per_minute: float | None = None
    max_body_bytes: int = 16 * 2**20
    max_messages: int = 1000
    max_prompt_tokens: int = 200_000
    max_output_tokens: int = 32_768
    max_n: int = 16
    max_draft_chars: int = 20_000
    cors_origin: str | None = None
    breaker_failures: int = 5
    breaker_cooldown_s: float = 5.0
    backoff_s: float = 0.5
