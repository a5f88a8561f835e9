"""The documentation site: what its extension writes. That no link is broken, `make docs` checks, which CI runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from tests.docs.blocks import ROOT

import cowest
from cowest.recipe.config import RunConfig

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The extension, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("reference", DOCS / "_ext" / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("written", "file", "page", "on_the_page"),
    [
        ("[a](docs/tasks.md#x)", "README.md", "docs/index.md", "[a](tasks.md#x)"),
        ("[a](tasks.md)", "docs/start.md", "docs/start.md", "[a](tasks.md)"),
        ("[a](../README.md)", "docs/start.md", "docs/start.md", "[a](index.md)"),
        ("[a](../recipes)", "docs/start.md", "docs/start.md", "[a](recipes.md)"),
        ("[a](../../CHANGELOG.md)", "docs/reference/x.md", "docs/reference/x.md", "[a](../changelog.md)"),
        ("[a](../src/cowest/pipeline.py)", "docs/start.md", "docs/start.md", "a (`src/cowest/pipeline.py`)"),
        ("[`a.py`](../src/cowest/pipeline.py)", "docs/start.md", "docs/start.md", "`a.py`"),
        ("[a](../no/such/file.md)", "docs/start.md", "docs/start.md", "[a](../no/such/file.md)"),
        ("[a](https://example.org/x)", "README.md", "docs/index.md", "[a](https://example.org/x)"),
        ("[a](#x)", "README.md", "docs/index.md", "[a](#x)"),
    ],
)
def test_a_link_leads_to_a_page(reference: ModuleType, written: str, file: str, page: str, on_the_page: str) -> None:
    assert reference.linked(written, ROOT / file, ROOT / page) == on_the_page


def test_every_setting_is_on_the_page(reference: ModuleType) -> None:
    page = reference.settings()
    schema = RunConfig.model_json_schema()
    fields = {name for section in (schema, *schema["$defs"].values()) for name in section.get("properties", {})}
    assert len(fields) > 150
    assert {name for name in fields if f"| `{name}` |" not in page} == set()
    headings = set(re.findall(r"^## (\w+)$", page, re.MULTILINE))
    assert {link for link in re.findall(r"\]\(#(\w+)\)", page)} <= {h.lower() for h in headings}


def test_every_command_is_on_the_page(reference: ModuleType) -> None:
    page = reference.commands()
    for command in ("run", "validate", "estimate", "table", "serve", "guard", "lab pretrain", "ledger show"):
        assert f"## cowest {command}\n" in page
    assert page.count("Usage:") > 15


def test_every_page_is_in_the_menu() -> None:
    menu = set(re.findall(r"^([\w/-]+)$", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE))
    pages = {str(p.relative_to(DOCS).with_suffix("")) for p in (*DOCS.glob("*.md"), *DOCS.glob("reference/*.md"))}
    assert pages - {"index"} == menu


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == cowest.__version__
    assert citation["references"][0]["doi"].startswith("10.")
    assert f"({cowest.__version__})" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_pictures_that_pages_show_are_small() -> None:
    for picture in (DOCS / "images").iterdir():
        assert picture.stat().st_size < 200_000, picture
    for page in (ROOT / "README.md", *DOCS.glob("*.md")):
        for found in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / Path(found)).exists(), f"{page}: {found}"
