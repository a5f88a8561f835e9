"""Files that a ``jsonl`` task is pointed at and that are something else: what they are, and the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

IMPORT: Final = "cowest import FILE --out DIR"
OTHER_LAYOUTS: Final = frozenset(
    [
        "question",
        "query",
        "prompt",
        "instruction",
        "text",
        "label",
        "output",
        "completion",
        "response",
        "target",
        "conversations",
    ]
)
"""Fields of other layouts, none of which is a misspelt field of ours."""
_MAGIC: Final = {
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "packed by gzip",
    b"PK\x03\x04": "a zip archive or an Excel workbook (save the sheet as CSV first)",
    b"\xff\xfe": "UTF-16, not UTF-8",
    b"\xfe\xff": "UTF-16, not UTF-8",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "a database",
}


def other_format(path: Path, data: bytes) -> str | None:
    """What a file is, if it is no JSONL, with what to do; None for what may be JSONL."""
    fix = f"rows are one JSON object a line; to have it turned into that: cowest import {path} --out DIR"
    for magic, what in _MAGIC.items():
        if data.startswith(magic):
            return f"is {what}; {fix}"
    head = data[: 1 << 16].removeprefix(b"\xef\xbb\xbf").lstrip()
    if head[:4096:2].count(0) + head[1:4096:2].count(0) > len(head[:4096]) // 4:
        return f"is UTF-16 or no text; {fix}"
    if not head:
        return None
    line, *rest = (line.strip() for line in head.split(b"\n", 2))
    if head.startswith(b"[") and (b"{" in line or not _is_json(line)) and not line.startswith(b"[" * 9):
        return f"is one JSON array, and not one object per line; {fix}"
    over_lines = bool(rest) and not rest[0].startswith(b"{") and line.endswith((b"{", b"[", b","))
    if head.startswith(b"{") and over_lines and not _is_json(line):
        return f"is one JSON object over several lines; {fix}"
    if not head.startswith((b"{", b"[", b'"')) and _is_table(line):
        return f"is a table (CSV or TSV); {fix}"
    return None


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _is_table(line: bytes) -> bool:
    return any(line.count(mark) for mark in (b",", b"\t", b";", b"|"))
