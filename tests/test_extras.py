"""What a core install says when a command needs an extra: the command to install it, before anything is done."""

from __future__ import annotations

import pytest
from tests.helpers import tiny_recipe
from tests.paid_endpoint import paid_recipe

from cowest.assembly import prepare
from cowest.errors import MissingExtraError
from cowest.recipe.config import config_from_dict

RECIPE = config_from_dict(tiny_recipe("org/model", "http://localhost/v1"))


def test_a_run_without_the_training_stack_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "find_spec", lambda name: None if name in ("trl", "matplotlib") else object())
    with pytest.raises(MissingExtraError, match=r"needs trl, matplotlib: pip install 'cowest\[train,plots\]'"):
        prepare.check_installed(RECIPE)


def test_models_that_are_served_need_no_training_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "find_spec", lambda name: object() if name == "matplotlib" else None)
    prepare.check_installed(config_from_dict(paid_recipe("http://localhost/v1")))


def test_with_everything_installed_nothing_is_said() -> None:
    prepare.check_installed(RECIPE)
