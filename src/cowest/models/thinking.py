r"""Hidden thinking and the visible answer in one text, as reasoning models write them.

One row: ``"<think>\nPerhaps no.\n</think>\n\nYes."`` -> visible ``"Yes."``, thinking ``"Perhaps no."``.

Servers with a reasoning parser split the two themselves; all others leave the marks in the text. The formats read here:
tags (DeepSeek-R1, Qwen3, GLM, Nemotron, Hunyuan, EXAONE, Seed, Reflection), ``[THINK]`` (Magistral), ``<|begin_of_thought|>``
(Sky-T1), ``<|START_THINKING|>`` (Command A), ``◁think▷`` (Kimi), channels (gpt-oss and Gemma), Granite's and Apriel's sentences. A
chat template may have written the opening tag: then the text has only the closing one. Pure functions, nothing is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

_TAG_WORDS: Final = (
    r"(?:\w{1,20}[:_-]?)?think(?:ing)?|thoughts?",  # also <seed:think>, <longcat_think>, <antThinking>
    "reason(?:ing)?|analysis|cot|chain[_-]of[_-]thought",
    "(?:inner|internal)[_-]?(?:monologue|thoughts?|reasoning)",
    "reflection",
    r"scratch[_-]?pad",
)
_FORMATS: Final = (
    *((rf"<\s*(?:{word})(?:\s[^<>]{{0,80}})?>", rf"<\s*/\s*(?:{word})\s*>", "") for word in _TAG_WORDS),
    (r"\[THINK\]", r"\[/THINK\]", "[/THINK]"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>", "<|end_of_thought|>"),
    (r"<\|think\|>", r"<\|/think\|>", "<|/think|>"),
    (r"<\|thinking\|>", r"<\|/thinking\|>", "<|/thinking|>"),
    (r"<\|thought\|>", r"<\|/thought\|>", "<|/thought|>"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>", "<|END_THINKING|>"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7", "\u25c1/think\u25b7"),
    (r"<\|channel>thought\b", r"<channel\|>", "<channel|>"),
    (r"<unused94>thought\b", r"<unused95>", "<unused95>"),
    (r"(?<![^\n])Here(?:'s| is) my thought process:", r"Here(?:'s| is) my response:", "Here's my response:"),
    (r"(?<![^\n])Here are my reasoning steps:", r"\[BEGIN FINAL RESPONSE\]", "[BEGIN FINAL RESPONSE]"),
)
"""What opens thinking, what closes it, and how the closing is written ('': as the opening tag's word says), by format."""
_OPENED: Final = tuple(re.compile(opening, re.IGNORECASE) for opening, _, _ in _FORMATS)
_MARK: Final = re.compile(
    "|".join(f"(?P<o{i}>{opening})|(?P<c{i}>{closing})" for i, (opening, closing, _) in enumerate(_FORMATS)),
    re.IGNORECASE,
)
_QUOTED: Final = "`\"'\u201c\u2018"  # a mark right after one of these is spoken of, not used
# gpt-oss: "<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>..."
_CHANNEL: Final = re.compile(
    r"(?:<\|start\|>\s*assistant\s*)?<\|channel\|>\s*(?P<name>\w+)[^<]{0,200}(?:<\|constrain\|>[^<]{0,80})?<\|message\|>"
)
_CHANNEL_END: Final = re.compile(r"<\|(?:end|return|call)\|>")
# The same where a decoder has dropped the special tokens.
_BARE_CHANNELS: Final = re.compile(r"\s*analysis(?P<thinking>.*?)assistantfinal(?=[^a-z]|$)", re.DOTALL)
# What some formats put around the visible part.
_RESPONSE: Final = re.compile(
    r"<\|(?:begin|end)_of_solution\|>|<\|(?:START|END)_RESPONSE\|>|^\s*<response>|</response>\s*$|\[END FINAL RESPONSE\]",
    re.IGNORECASE,
)
_FIRST_OF_A_MARK: Final = "<[\u25c1"
_LONGEST_MARK: Final = 120
_SPOKEN_STARTS: Final = ("here's my thought process:", "here is my thought process:", "here are my reasoning steps:")
"""How thinking begins that has no tag."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A text's visible part (None: there is none) and what was hidden before, between or after (None: nothing)."""

    visible: str | None
    thinking: str | None = None


def split_thinking(text: str) -> Parts:
    """Take hidden thinking out of a model's text. A text without any is given back as it is.

    Thinking that is never closed reaches to the end of the text; before it, text may be visible.
    """
    if not _may_hold_marks(text):
        return Parts(text if text.strip() else None)
    shown, hidden = _by_channel(text) if "<|channel|>" in text else _by_marks(text)
    thinking = "\n\n".join(piece.strip() for piece in hidden if piece.strip())
    if not hidden:
        return Parts(text if text.strip() else None)
    visible = _RESPONSE.sub("", "\n".join(piece.strip() for piece in shown if piece.strip())).strip()
    return Parts(visible or None, thinking or None)


def shown_so_far(text: str) -> str:
    """What a reader may see of a text that is still written: what is visible of it, without a mark that may have begun.

    Thinking whose opening mark the prompt has written is only known for it at its end, and seen until then.
    """
    open_ = max(text.rfind(c) for c in _FIRST_OF_A_MARK)
    if open_ >= 0 and len(text) - open_ <= _LONGEST_MARK and not re.search(r"[>\]\u25b7\n]", text[open_:]):
        text = text[:open_]
    begins = text.lstrip()
    begun = any(start.startswith(begins.casefold()) for start in _SPOKEN_STARTS)
    if begun or (begins.startswith("analysis") and "assistantfinal" not in begins):
        return ""
    return split_thinking(text).visible or ""


def opens_thinking(prompt: str) -> str:
    r"""The opening mark with which a prompt ends ("" for none): what the model writes next is thinking until it closes it.

    >>> opens_thinking("<|im_start|>assistant\n<think>\n")
    '<think>'
    """
    end = prompt.rstrip()
    for opening in _OPENED:
        found = [m for m in opening.finditer(end, max(0, len(end) - 120)) if m.end() == len(end)]
        if found:
            return found[-1].group()
    return ""


def closing_of(opening: str) -> str:
    """What closes the thinking that this mark opens.

    >>> closing_of("<think>"), closing_of("[THINK]")
    ('</think>', '[/THINK]')
    """
    closing = next(written for pattern, _, written in _FORMATS if re.fullmatch(pattern, opening, re.IGNORECASE))
    return closing or f"</{opening.strip('<> ').split()[0]}>"


def is_thinking_mark(token: str) -> bool:
    """Whether a tokenizer's special token opens or closes thinking, so that a decoded text needs it."""
    return _MARK.fullmatch(token) is not None or token in ("<|channel|>", "<|message|>", "<|start|>", "<|end|>")


def _may_hold_marks(text: str) -> bool:
    """Cheap, since nearly every text is asked: no mark is without one of these."""
    return (
        any(c in text for c in "<[\u25c1")
        or "my thought process" in text
        or "my reasoning steps" in text
        or "assistantfinal" in text
    )


def _by_channel(text: str) -> tuple[list[str], list[str]]:
    """Visible and hidden pieces of a text in channels: only the final one is for the reader."""
    marks = list(_CHANNEL.finditer(text))
    if not marks:  # cut off within the first mark
        before, _, rest = text.partition("<|channel|>")
        return [before], [rest]
    shown, hidden = [text[: marks[0].start()]], list[str]()
    for mark, following in zip_longest(marks, marks[1:]):
        content = text[mark.end() : following.start() if following else len(text)]
        content = _CHANNEL_END.split(content)[0]
        (shown if mark.group("name") == "final" else hidden).append(content)
    return shown, hidden or [""]


def _by_marks(text: str) -> tuple[list[str], list[str]]:
    """Visible and hidden pieces of a text with opening and closing marks."""
    bare = _BARE_CHANNELS.match(text)
    if bare:
        return [text[bare.end() :]], [bare.group("thinking")]
    shown: list[str] = []
    hidden: list[str] = []
    begin, awaited = 0, ""
    for mark in _marks(text):
        name = mark.lastgroup or ""
        if awaited:
            if name == awaited:
                hidden.append(text[begin : mark.start()])
                begin, awaited = mark.end(), ""
        elif name[0] == "o":
            shown.append(text[begin : mark.start()])
            begin, awaited = mark.end(), f"c{name[1:]}"
        elif not hidden or text[mark.end() :].strip():
            # Only a closing mark: all before it was thinking. A second one at the very end is a slip, and hides nothing.
            hidden.append("".join([*shown, text[begin : mark.start()]]))
            shown, begin = [], mark.end()
        else:
            shown.append(text[begin : mark.start()])
            begin = mark.end()
    (hidden if awaited else shown).append(text[begin:])
    return shown, hidden


def _marks(text: str) -> Iterator[re.Match[str]]:
    """Those that are used, and not spoken of: "<think>...</think>" in quotes is neither opened nor closed."""
    spoken_of: set[str] = set()
    for mark in _MARK.finditer(text):
        name = mark.lastgroup or ""
        if mark.start() and text[mark.start() - 1] in _QUOTED:
            spoken_of.add(f"c{name[1:]}")
        elif name in spoken_of:
            spoken_of.remove(name)
        else:
            yield mark
