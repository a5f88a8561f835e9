"""The command blocks of the guides: what a reader would type, taken apart as a shell would."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "recipes" / "README.md",
    ROOT / "benchmarks" / "README.md",
)
NOT_GUIDES = {"log.md"}  # what was done once, on a commit of then
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_SHELL = {"", "bash", "sh", "shell", "console"}
_WORD = r"(?:[A-Z_]+=\S* )*"


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a page; ``words`` without its assignments, comment, redirection and background mark."""

    page: str
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {' '.join(self.words)}"


def pages() -> list[Path]:
    """Every page whose commands a reader may type."""
    found = [p for p in sorted((ROOT / "docs").rglob("*.md")) if p.name not in NOT_GUIDES and "_build" not in p.parts]
    return [*PAGES, *found]


def commands(program: str) -> list[Command]:
    """All commands of a program (``cowest``, ``make``, ``pip``, ``python``) in all pages."""
    return [command for page in pages() for command in _of_page(page) if command.words[0] == program]


def _of_page(page: Path) -> Iterator[Command]:
    text = page.read_text(encoding="utf-8")
    for block in _BLOCK.finditer(text):
        if block[2] not in _SHELL:
            continue
        first = text.count("\n", 0, block.start(3)) + 1
        for number, line in _joined(block[3], first):
            for words in _commands(line):
                yield Command(str(page.relative_to(ROOT)), number, words)


def _joined(body: str, first: int) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, those that end with a backslash joined to the next, quotes over lines left open."""
    held, begin = "", first
    for number, line in enumerate(body.splitlines(), first):
        begin = begin if held else number
        held += line.strip().removesuffix("\\") + " "
        if not line.rstrip().endswith("\\"):
            yield begin, held.strip()
            held = ""


def _commands(line: str) -> Iterator[tuple[str, ...]]:
    line = line.removeprefix("$ ")
    if not re.match(rf"{_WORD}(cowest (--)?[a-z]|(make|pip|python)\b)", line):
        return
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a script in quotes over several lines
        return
    part: list[str] = []
    for word in (*words, "&&"):
        if word in {"&&", ";", "&", "|", ">", "<<"} or word.startswith((">", "2>", "<<")):
            yield from _one(part)
            part = []
            if word.startswith((">", "2>", "<<")):
                return
        else:
            part.append(word)


def _one(part: list[str]) -> Iterator[tuple[str, ...]]:
    words = tuple(part)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words:
        yield words
