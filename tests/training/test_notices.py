from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from tests.training.conftest import Ticker
from trl.trainer import sft_trainer

from cowest.recipe.config import SftConfig
from cowest.training.common import arguments
from cowest.training.notices import quiet
from cowest.training.sft import SftRow, train_sft
from cowest.types import ModelRef

pytestmark = pytest.mark.slow


def test_each_warning_of_trl_is_told_once_and_nothing_is_printed(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    PartialState()  # accelerate's loggers, which TRL uses, want it
    before = list(warnings.filters)
    with quiet(told.append):
        for _ in range(3):
            sft_trainer.logger.warning("Rows were\n  dropped.")
            logging.getLogger("trl.trainer.dpo_trainer").error("Pairs, too.")
            warnings.warn("a target module was not found", UserWarning, stacklevel=1)
        sft_trainer.logger.info("A detail.")
    assert told == [
        "TRL warns: Rows were dropped.",
        "TRL warns: Pairs, too.",
        "UserWarning: a target module was not found",
    ]
    assert list(warnings.filters) == before
    sft_trainer.logger.warning("Outside.")
    assert told[3:] == [] and "Rows" not in caplog.text and "Outside." in caplog.text
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""


def test_what_libraries_tell_each_other_of_their_future_is_left_out() -> None:
    told: list[str] = []
    with quiet(told.append):
        for module in ("transformers.modeling_utils", "torch.nn", "cowest.training.sft", "trl.trainer.utils"):
            message = f"`{module}.old` is deprecated"
            warnings.warn_explicit(message, FutureWarning, "file.py", 1, module=module)
    assert told == [
        "FutureWarning: `cowest.training.sft.old` is deprecated", "FutureWarning: `trl.trainer.utils.old` is deprecated",
    ]  # fmt: skip


def test_a_training_tells_what_trl_warns_of(
    tiny: ModelRef, rows: list[SftRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(*args: Any) -> Any:
        made = arguments(*args)
        made.model_init_kwargs = {"dtype": "float32"}  # of no use to a model that is loaded already, as TRL says
        return made

    monkeypatch.setattr("cowest.training.sft.arguments", careless)
    ticker = Ticker()
    train_sft(tiny, rows, SftConfig(method="full", max_steps=1, device="cpu"), tmp_path, 0, ticker)
    [line] = ticker.told
    assert line.startswith("sft: TRL warns: You passed `model_init_kwargs`") and "\n" not in line
