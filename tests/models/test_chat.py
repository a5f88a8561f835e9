from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.models.templates import DEAF_TO_SYSTEM, ENDS, NO_END, OPENS_THINKING, OWN_END, STRICT, tokenizer_with
from transformers import PreTrainedTokenizerFast

from cowest.errors import ModelCallError
from cowest.models.chat import close_thinking, ensure_chat_template, prompt_ids, prompt_text, turn_end
from cowest.models.thinking import opens_thinking
from cowest.models.turns import merged
from cowest.types import Message

pytestmark = pytest.mark.slow


def system(text: str) -> Message:
    return Message(role="system", content=text)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


def token_of(tokenizer: PreTrainedTokenizerFast, id: int | None) -> str | None:
    return None if id is None else str(tokenizer.convert_ids_to_tokens(id))


@pytest.mark.parametrize("name", ENDS)
def test_the_turn_ends_with_the_templates_own_token_else_with_eos(name: str) -> None:
    template, expected = ENDS[name]
    tokenizer = tokenizer_with(template)
    assert token_of(tokenizer, turn_end(tokenizer)) == expected


def test_runs_of_blanks_in_the_vocabulary_end_no_turn() -> None:
    tokenizer = tokenizer_with(NO_END.replace("+ m['content']", "+ m['content'] + '    '"))
    tokenizer.add_tokens(["    "])
    assert turn_end(tokenizer) == tokenizer.eos_token_id


def test_a_model_without_any_end_has_none_and_padding_needs_no_eos() -> None:
    tokenizer = tokenizer_with(NO_END)
    tokenizer.eos_token = None
    assert turn_end(tokenizer) is None
    tokenizer = tokenizer_with(OWN_END)
    tokenizer.eos_token = tokenizer.pad_token = None
    assert ensure_chat_template(tokenizer) and tokenizer.pad_token == "<|stop|>"


BAR = "\uff5c"  # the full-width bar of DeepSeek's tokens
REAL = {
    "qwen3": "<|im_end|>",
    "qwen2_5": "<|im_end|>",
    "llama3_1": "<|eot_id|>",
    "gemma3": "<end_of_turn>",
    "phi3": "<|end|>",
    "deepseek_r1_distill": f"<{BAR}end▁of▁sentence{BAR}>",
    "cohere2": "<|END_RESPONSE|>",
    "gptoss": "<|return|>",
    "glm4moe": "<end>",  # ends no turn: the tokenizer's
}


@pytest.mark.parametrize("name", REAL)
def test_the_templates_of_published_models(name: str) -> None:
    trl = pytest.importorskip("trl")
    template = (Path(trl.__path__[0]) / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    marks = sorted({*re.findall(rf"<[|{BAR}][^<>|{BAR}\s]+[|{BAR}]>|</?think>|<(?:start|end)_of_turn>", template)})
    tokenizer = tokenizer_with(template, marks)
    assert token_of(tokenizer, turn_end(tokenizer)) == REAL[name]
    text = prompt_text(tokenizer, [system("Be brief."), user("Why?")])
    assert text.index("Be brief.") < text.index("Why?")  # in its place, or merged into the user's turn


TURNS = [system("Be brief."), user("Why?"), user("Do say."), assistant("So."), user("And?")]


@pytest.mark.parametrize("template", [STRICT, DEAF_TO_SYSTEM])
def test_what_a_template_refuses_or_leaves_out_is_merged(template: str) -> None:
    said = "<user>Be brief.\n\nWhy?\n\nDo say.<assistant>So.<end><user>And?<assistant>"
    assert prompt_text(tokenizer_with(template), TURNS) == said


def test_what_a_template_takes_is_left_as_it_is() -> None:
    text = prompt_text(tokenizer_with(OWN_END), TURNS[:3])
    turn = "<|start|>{}\n{}<|stop|>\n"
    said = turn.format("system", "Be brief.") + turn.format("user", "Why?") + turn.format("user", "Do say.")
    assert text == said + "<|start|>assistant\n"


def test_what_it_refuses_for_good_is_an_error() -> None:
    for turns in ([assistant("Hello."), user("Why?")], [system("Be brief."), assistant("Hello."), user("Why?")]):
        with pytest.raises(ModelCallError, match="the chat template refuses this: roles must alternate") as caught:
            prompt_ids(tokenizer_with(STRICT), turns)
        assert caught.value.kind == "chat_template"


def test_merging_joins_neighbours_and_keeps_the_order() -> None:
    assert merged([user("a"), assistant("b"), assistant("c"), system("s"), user("d"), user("e")]) == [
        user("s\n\na"), assistant("b\n\nc"), user("d\n\ne"),
    ]  # fmt: skip
    assert merged([system("s"), system("t")]) == [user("s\n\nt")] and merged([]) == []


@pytest.mark.parametrize(
    ("opened", "closed"),
    [
        ("<think>\n", "<think>\n\n</think>\n\n"),
        ("<think>", "<think>\n\n</think>\n\n"),
        ("<seed:think>\n", "<seed:think>\n\n</seed:think>\n\n"),
        ("[THINK]", "[THINK]\n\n[/THINK]\n\n"),
        ("\u25c1think\u25b7", "\u25c1think\u25b7\n\n\u25c1/think\u25b7\n\n"),
        ("<think>\n\n</think>\n\n", "<think>\n\n</think>\n\n"),
        ("", ""),
    ],
)
def test_thinking_that_the_prompt_opens_is_closed(opened: str, closed: str) -> None:
    tokenizer = tokenizer_with(OPENS_THINKING.replace("<think>\n", opened))
    before = prompt_text(tokenizer, [user("Why?")])
    assert close_thinking(tokenizer) == ("" if opened == closed else opened.strip())
    after = prompt_text(tokenizer, [user("Why?")])
    assert before.endswith(f"assistant\n{opened}") and after.endswith(f"assistant\n{closed}")
    assert after.startswith(before) and opens_thinking(after) == "" and close_thinking(tokenizer) == ""
    assert token_of(tokenizer, turn_end(tokenizer)) == "<|stop|>"
    assert close_thinking(tokenizer_with(STRICT)) == ""
