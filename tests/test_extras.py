"""What a core install says when a command needs an extra: the command to install it, before anything is done."""

from __future__ import annotations

import pytest

from cowest import pipeline
from cowest.errors import MissingExtraError


def test_a_run_without_the_training_stack_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "find_spec", lambda name: None if name in ("trl", "matplotlib") else object())
    with pytest.raises(MissingExtraError, match=r"needs trl, matplotlib: pip install 'cowest\[train,plots\]'"):
        pipeline.check_installed()


def test_with_everything_installed_nothing_is_said() -> None:
    pipeline.check_installed()
