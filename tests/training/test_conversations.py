"""Training on conversations: loss on the last answer alone, and what is too long loses its earliest turns."""

from __future__ import annotations

import pytest
from tests.training.conftest import END

from cowest.models.local import load_tokenizer
from cowest.recipe.config import AlignConfig
from cowest.training import kto, preference
from cowest.training.encoding import Cut
from cowest.training.sft import SftRow, tokenize
from cowest.types import LabelledDraft, Message, ModelRef, PreferencePair

pytestmark = pytest.mark.slow
PROMPT = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="May a patient take 3 mg?"),
    Message(role="assistant", content="The limit is 9 mg."),
    Message(role="user", content="And 5 mg?"),
    Message(role="assistant", content="The limit is 9 mg, too."),
    Message(role="user", content="And 7 mg?"),
)
LATER = "<system>Be brief.<user>And 5 mg?<assistant>The limit is 9 mg, too.<end><user>And 7 mg?<assistant>"
FIRST = "<system>Be brief.<user>May a patient take 3 mg?<assistant>The limit is 9 mg.<end>"
WHOLE = FIRST + LATER.removeprefix("<system>Be brief.")
ROW = SftRow(prompt=PROMPT, completion="Yes. Answer: yes")


def said(tiny: ModelRef, ids: list[int]) -> str:
    return str(load_tokenizer(tiny).decode(ids))


def test_only_the_target_has_a_loss(tiny: ModelRef) -> None:
    [found], cut = tokenize(load_tokenizer(tiny), [ROW], 999, "tiny", END)
    assert said(tiny, found["input_ids"]) == f"{WHOLE}Yes. Answer: yes<end>"
    assert said(tiny, [i for i in found["labels"] if i != -100]) == "Yes. Answer: yes<end>"
    assert cut == Cut(items=1) and cut.counts("rows") == {"rows_cut": 0, "rows_lost": 0}
    assert Cut(items=1).model_dump() == {"items": 1, "cut": 0, "lost": 0, "equal": 0}, (
        "summaries of older runs are equal"
    )


def test_too_long_a_row_loses_its_earliest_turns_and_keeps_question_and_target(tiny: ModelRef) -> None:
    tokenizer = load_tokenizer(tiny)
    [whole], _ = tokenize(tokenizer, [ROW], 999, "tiny", END)
    [found], cut = tokenize(tokenizer, [ROW], len(whole["input_ids"]) - 1, "tiny", END)
    assert said(tiny, found["input_ids"]) == f"{LATER}Yes. Answer: yes<end>"
    assert cut == Cut(items=1, shortened=1) and cut.counts("rows")["rows_shortened"] == 1
    [least], _ = tokenize(tokenizer, [ROW], 40, "tiny", END)
    assert said(tiny, least["input_ids"]).startswith("<system>Be brief.<user>And 7 mg?<assistant>Yes.")


def test_pairs_and_drafts_are_shortened_alike(tiny: ModelRef) -> None:
    tokenizer = load_tokenizer(tiny)
    long, short = (
        Message(role="assistant", content=text) for text in ("No, the limit is 9 mg. Answer: no", "Answer: no")
    )
    pair = PreferencePair(
        example_id="1", prompt=PROMPT, chosen=(short,), rejected=(long,), chosen_gain=1.0, rejected_gain=0.0
    )
    [whole], _ = preference.tokenize(tokenizer, [pair], 999, "tiny", END)
    assert said(tiny, whole["prompt_ids"]) == WHOLE
    most = len(whole["prompt_ids"]) + len(whole["rejected_ids"])
    [fits], cut = preference.tokenize(tokenizer, [pair], most, "tiny", END)
    assert fits == whole and cut == Cut(items=1)
    [found], cut = preference.tokenize(tokenizer, [pair], most - 1, "tiny", END)
    assert said(tiny, found["prompt_ids"]) == LATER and cut == Cut(items=1, shortened=1)
    assert found["rejected_ids"] == whole["rejected_ids"]
    draft = LabelledDraft(example_id="1", prompt=PROMPT, completion=(long,), label=True, worth=1.0, baseline=0.0)
    [row], cut = kto.tokenize(tokenizer, [draft], AlignConfig(max_length=most - 1), "tiny", END)
    assert said(tiny, row["prompt_ids"]) == LATER and cut == Cut(items=1, shortened=1)


def test_a_template_without_a_system_role_gets_its_text_in_the_first_user_turn(tiny: ModelRef) -> None:
    tokenizer = load_tokenizer(tiny)
    from tests.models.templates import STRICT

    tokenizer.chat_template = STRICT
    [found], _ = tokenize(tokenizer, [ROW], 999, "tiny", END)
    assert said(tiny, found["input_ids"]).startswith("<user>Be brief.\n\nMay a patient take 3 mg?<assistant>The limit")
