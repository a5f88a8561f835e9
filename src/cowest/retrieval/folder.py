"""A folder of the user's own documents -> passages: .txt and .md files, and .jsonl files with one text a row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from cowest.errors import DataError
from cowest.retrieval.documents import Document, split_text

KINDS = (".txt", ".md", ".jsonl")


def read_folder(folder: Path, max_chars: int) -> tuple[Document, ...]:
    """The passages of every file in the folder and the folders in it, in the order of their names; equal texts once.

    A passage has at most ``max_chars`` characters and is of one file, or of one row of a ``.jsonl`` (``text``, and ``title`` before
    it where there is one). Its id is the file's name in the folder and the passage's number. Hidden files are left out.

    Raises DataError, with file and line, for a folder that is not there or has no text, a file that is not UTF-8, or a row without.
    """
    if not folder.is_dir():
        raise DataError(f"task.documents.folder: {folder} is no folder; name one with {', '.join(KINDS)} files")
    found: dict[str, Document] = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in KINDS and p.is_file()):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in name.split("/")):
            continue
        number = 0
        for text in _texts(path):
            for passage in split_text(text, max_chars):
                number += 1
                key = " ".join(passage.casefold().split())
                found.setdefault(key, Document(f"{name}#{number}", passage))
    if not found:
        raise DataError(f"task.documents.folder: {folder} holds no text; put {', '.join(KINDS)} files there")
    return tuple(found.values())


def _texts(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}); mend it, or take it out") from None
    if path.suffix.lower() != ".jsonl":
        yield text
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON ({error}); one object a line is needed") from None
        body, title = (row.get("text"), row.get("title")) if isinstance(row, dict) else (None, None)
        if not isinstance(body, str) or not isinstance(title, str | None):
            raise DataError(
                f'{path}:{number}: no "text" that is a string; write {{"text": "..."}}, perhaps with "title"'
            )
        yield f"{title}\n{body}" if title else body
