"""A short run of the fuzzing benchmark, which has its own processes: no 5xx, errors in OpenAI's shape, nothing left inside."""

from __future__ import annotations

import sys

import pytest
from benchmarks.serving.fuzz import fuzz

pytestmark = pytest.mark.slow


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_fuzzed_requests_get_no_5xx() -> None:
    assert fuzz(400) == 0
