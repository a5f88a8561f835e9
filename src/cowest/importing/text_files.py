"""CSV, TSV, JSON and JSONL, gzipped or not, in any encoding that Python knows: read line by line."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Final, cast

from cowest.errors import DataError
from cowest.importing.json_stream import json_rows
from cowest.importing.records import Raw

CHUNK: Final = 1 << 16
LONGEST_FIELD: Final = 1 << 24
"""Characters of a field of a CSV file; a longer one is a quote that is never closed."""
_PACKED: Final[Mapping[str, Callable[[Path], IO[bytes]]]] = {
    ".gz": lambda path: cast(IO[bytes], gzip.GzipFile(path)),
    ".bz2": lambda path: cast(IO[bytes], bz2.BZ2File(path)),
    ".xz": lambda path: cast(IO[bytes], lzma.LZMAFile(path)),  # noqa: SIM115
}
_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHERS: Final = {
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as CSV",
    b"SQLite format 3": "an SQLite database; export the table as CSV",
    b"\x28\xb5\x2f\xfd": "packed by zstd; unpack it",
    b"\x1f\x8b": "packed by gzip; give it a name that ends in .gz",
    b"%PDF": "a PDF; export a table as CSV",
}


def bare_suffix(path: Path) -> str:
    """The suffix without that of the packing: ``.csv`` of ``rows.csv.gz``."""
    return (path.with_suffix("") if path.suffix.lower() in _PACKED else path).suffix.lower()


def first_bytes(path: Path, size: int = CHUNK) -> bytes:
    """The beginning of a file, unpacked. Raises DataError."""
    try:
        with _binary(path) as file:
            return file.read(size)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}); give a readable file") from None


def is_json(path: Path) -> bool:
    """Whether a file is JSON or JSONL by its name, or else by how it begins. Raises DataError for what is no text."""
    head = first_bytes(path)
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise DataError(f"{path}: is {what}")
    suffix = bare_suffix(path)
    if suffix in (".json", ".jsonl", ".ndjson", ".jsonlines"):
        return True
    if suffix in (".csv", ".tsv", ".tab"):
        return False
    return head.decode(_encoding(path, head, None), errors="replace").lstrip()[:1] in ("{", "[")


def text_rows(path: Path, encoding: str | None) -> Iterator[Raw]:
    """The rows of a text file. Raises DataError, which names the line and the way out."""
    as_json, found = is_json(path), _encoding(path, first_bytes(path), encoding)
    try:
        # csv wants line ends as they are; so does a line count that is to agree with an editor's
        with _binary(path) as raw, io.TextIOWrapper(raw, encoding=found, newline="" if not as_json else None) as text:
            yield from json_rows(path, text) if as_json else _csv_rows(path, text)
    except UnicodeDecodeError as error:
        bad = error.object[error.start]
        raise DataError(
            f"{path}{_line_of(path, found)}: not {found} (byte 0x{bad:02x}); save the file as UTF-8, or say what it is: "
            "--encoding cp1252 (Excel on Windows), latin-1, shift_jis, ..."
        ) from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}); give a readable file") from None


def _binary(path: Path) -> IO[bytes]:
    opener = _PACKED.get(path.suffix.lower())
    return path.open("rb") if opener is None else opener(path)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _encoding(path: Path, head: bytes, given: str | None) -> str:
    if given is not None:
        try:
            return codecs.lookup(given).name
        except LookupError:
            raise DataError(f"--encoding {given}: Python knows no such encoding; try utf-8, cp1252, utf-16") from None
    for mark, name in _BOMS:
        if head.startswith(mark):
            return name
    if b"\0" in head:
        even, odd = head[::2].count(0), head[1::2].count(0)
        if max(even, odd) < len(head) // 8:
            raise DataError(f"{path}: holds zero bytes: no text file; give CSV, TSV, JSON, JSONL or Parquet")
        return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8"


def _line_of(path: Path, encoding: str) -> str:
    """``:LINE`` of the first bytes that are not of this encoding, where lines can be counted."""
    if not encoding.startswith(("utf-8", "ascii", "cp", "latin", "iso")):
        return ""
    with _binary(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8" if encoding.startswith("utf-8") else encoding)
            except UnicodeDecodeError:
                return f":{number}"
    return ""


def _csv_rows(path: Path, text: IO[str]) -> Iterator[Raw]:
    csv.field_size_limit(LONGEST_FIELD)
    head = text.readline()
    while head and not head.strip():
        head = text.readline()
    if not head:
        raise DataError(f"{path}: is empty; give rows below a line that names the columns")
    mark = "\t" if bare_suffix(path) in (".tsv", ".tab") else _delimiter(head)
    reader = csv.reader(_from(head, text), delimiter=mark, strict=True)
    columns = _columns(path, next(reader))
    while True:
        begun = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}:{begun}: {_csv_fault(str(error))}") from None
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(columns):
            raise DataError(
                f"{path}:{begun}: {len(cells)} fields, and the first line names {len(columns)} columns; put quotes around fields "
                f"that hold {'a tab' if mark == chr(9) else repr(mark)} or a line's end"
            )
        yield Raw(str(path), begun, dict(zip(columns, cells, strict=True)))


def _from(head: str, text: IO[str]) -> Iterator[str]:
    yield head
    yield from text


def _delimiter(head: str) -> str:
    """What parts the columns of the first line most often."""
    return max(",;\t|", key=lambda mark: (head.count(mark), mark == ","))


def _columns(path: Path, names: list[str]) -> list[str]:
    found = [name.strip() for name in names]
    if found and found[0].startswith("\ufeff"):
        found[0] = found[0][1:]
    found = [name or f"column_{i}" for i, name in enumerate(found, 1)]
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}:1: two columns are named {twice!r}; give each its own name")
    return found


def _csv_fault(text: str) -> str:
    if "field larger" in text or "unexpected end" in text:
        return "a quote that is opened here is never closed; close it"
    if "expected after" in text:
        return "text after a closing quote; write a quote within a quoted field twice"
    return f"broken CSV ({text}); mend the line"
