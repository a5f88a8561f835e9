"""Pages that the code writes: every setting of a recipe, every command's help. And links that leave the site's folder.

A page asks for one by a line ``<!-- settings -->`` or ``<!-- commands -->``, and for a file of the repository by
``<!-- page ../README.md -->``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer.main

from cowest.cli.main import app
from cowest.recipe.config import RunConfig

if TYPE_CHECKING:
    from sphinx.application import Sphinx

Schema = Mapping[str, Any]
ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index", "CHANGELOG.md": "changelog", "CONTRIBUTING.md": "contributing",
    "recipes/README.md": "recipes", "benchmarks/README.md": "benchmarks",
}  # fmt: skip
DOCS = ROOT / "docs"
_LINK = re.compile(r"\[([^\]\[]*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
_WHOLE = re.compile(r"<!-- page (\S+) -->")


def settings() -> str:
    """Every setting, a table a section, in Markdown."""
    schema = RunConfig.model_json_schema()
    parts = ["## The recipe\n", *_section(schema)]
    for name, section in sorted(schema["$defs"].items()):
        if "properties" in section:
            parts += [f"\n## {name}\n", _cell(section.get("description", "")), "\n", *_section(section)]
    return "\n".join(parts)


def _section(schema: Schema) -> Iterator[str]:
    yield "| setting | takes | unset | |\n|---|---|---|---|"
    for name, field in schema["properties"].items():
        unset = "" if name in schema.get("required", ()) else _default(field.get("default"))
        yield f"| `{name}` | {_type(field)} | {unset} | {_cell(field.get('description', ''))} |"


def _default(value: object) -> str:
    if value is None or isinstance(value, dict):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else _cell(str(value))}`"


def _type(field: Schema) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return "any" if name == "JsonValue" else f"[{name}](#{name.lower()})"
    if "const" in field or "enum" in field:
        return ", ".join(f"`{v}`" for v in field.get("enum", [field.get("const")]))
    if several := field.get("anyOf", field.get("oneOf")):
        return " or ".join(dict.fromkeys(_type(one) for one in several if one.get("type") != "null"))
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    extra = field.get("additionalProperties")
    if field.get("type") == "object" and isinstance(extra, dict):
        return f"name: {_type(extra)}"
    return str(field.get("type", "any"))


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def commands() -> str:
    """Every command's ``--help``, in Markdown."""
    return "\n".join(_helps(typer.main.get_command(app), "cowest"))


def _helps(command: Any, path: str) -> Iterator[str]:
    with command.make_context(path, [], resilient_parsing=True) as context:
        yield f"## {path}\n\n```text\n{command.get_help(context).strip()}\n```\n"
    for name, inner in getattr(command, "commands", {}).items():
        yield from _helps(inner, f"{path} {name}")


def linked(text: str, file: Path, page: Path) -> str:
    """``text``, written in ``file``, with its links as they have to be on ``page``; a file that has no page is named, not linked.

    A link to a file that is not there is left as it is, and the build fails on it.
    """

    def mend(found: re.Match[str]) -> str:
        words, anchor = found[1], found[3] or ""
        target = (file.parent / found[2]).resolve()
        if not target.exists() or not target.is_relative_to(ROOT):
            return found[0]
        if not target.is_relative_to(DOCS):
            name = str(target.relative_to(ROOT))
            there = PAGES.get(f"{name}/README.md" if target.is_dir() else name)
            if there is None:
                return words if "`" in words else f"{words} (`{name}`)"
            target = DOCS / f"{there}.md"
        return f"[{words}]({os.path.relpath(target, page.parent)}{anchor})"

    return _LINK.sub(mend, text)


def _on_read(sphinx: Sphinx, name: str, source: list[str]) -> None:
    page = Path(sphinx.env.doc2path(name))
    file, text = page, source[0]
    if whole := _WHOLE.search(text):
        file = (page.parent / whole[1]).resolve()
        sphinx.env.note_dependency(str(file))
        text = text.replace(whole[0], file.read_text(encoding="utf-8"))
    for mark, make in (("<!-- settings -->", settings), ("<!-- commands -->", commands)):
        if mark in text:
            text = text.replace(mark, make())
    source[0] = linked(text, file, page)


def setup(sphinx: Sphinx) -> Mapping[str, bool]:
    """Sphinx calls this."""
    sphinx.connect("source-read", _on_read)
    return {"parallel_read_safe": True}
