"""Chat templates: how a conversation becomes the tokens a model is asked with, and which token ends its turn.

Training and generation both ask through :func:`prompt_ids`, so that a model is asked exactly as it was trained: with the
template's generation prompt, and without what some templates write into finished turns alone (an empty block of thinking). A
completion is followed by :func:`turn_end`, on which generation stops. Where the prompt opens ``<think>``, training closes it
there (:func:`close_thinking`), and the trained model keeps that template.

Base models have no template. They get :data:`PLAIN_TEMPLATE`, a ChatML-like layout in ordinary characters (no token has to
be added to the vocabulary), which ends the assistant's turn with the tokenizer's end-of-sequence token, so that SFT
teaches the model to stop. Training saves it with the tokenizer, and generation finds it there again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

from jinja2.exceptions import TemplateError

from cowest.errors import ConfigError, ModelCallError
from cowest.models.thinking import closing_of, opens_thinking
from cowest.models.turns import merged
from cowest.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "### {{ message['role'] }}:{{ '\n' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{%- else -%}{{ message['content'] }}{%- endif -%}"
    "{{ '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}### assistant:{{ '\n' }}{%- endif -%}"
)
"""``### user:``, a newline, the text, a newline, and the same for each turn; an assistant's text ends with eos."""

_SAID: Final = "Xq7zProbe"
"""An answer that is in no template: what a template writes after it ends the turn."""
_PROBE: Final = (Message(role="user", content="Ping?"), Message(role="assistant", content=_SAID))


def ensure_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Give ``tokenizer`` the plain template if it has none, and a padding token if it has none; True if it was changed.

    Raises ConfigError for a tokenizer with neither a template nor an end-of-sequence token: such a model could never learn
    to stop.
    """
    changed = False
    if not tokenizer.chat_template:
        if not tokenizer.eos_token:
            raise ConfigError("the model's tokenizer has neither a chat template nor an end-of-sequence token")
        tokenizer.chat_template = PLAIN_TEMPLATE
        changed = True
    if tokenizer.pad_token is None:
        end = turn_end(tokenizer)
        # Positions of padding are masked by length, never by their id: any token does.
        tokenizer.pad_token = tokenizer.eos_token or (None if end is None else tokenizer.convert_ids_to_tokens(end))
        changed = True
    return changed


def close_thinking(tokenizer: PreTrainedTokenizerBase) -> str:
    """Make the template close the thinking that its generation prompt opens; the opening mark, or nothing where it opens none.

    For a model that learns to answer without thinking: what it wrote after the open mark would be thinking to every reader.
    """
    try:
        prompt = _render(tokenizer, _PROBE[:1], prompt=True)
    except TemplateError:
        return ""  # a prompt that it takes will show what it does
    opening = opens_thinking(prompt)
    if opening and isinstance(tokenizer.chat_template, str):
        blank = "\n" if prompt.endswith("\n") else "\n\n"
        closing = json.dumps(f"{blank}{closing_of(opening)}\n\n")  # a string of Jinja's, too
        tokenizer.chat_template += "{%- if add_generation_prompt -%}{{ " + closing + " }}{%- endif -%}"
    return opening


def prompt_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """The conversation with the generation prompt.

    Where the template refuses it, or leaves the system turns out, these are merged as for endpoints
    (``models/turns.py``). Raises ModelCallError of kind ``chat_template`` where it refuses that, too.
    """
    plain = merged(messages)
    try:
        text = _render(tokenizer, messages, prompt=True)
        if all(m.content.strip() in text for m in messages if m.role == "system"):
            return text
    except TemplateError as error:
        if list(plain) == list(messages):
            raise _refused(error) from None
    try:
        return _render(tokenizer, plain, prompt=True)
    except TemplateError as error:
        raise _refused(error) from None


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """The tokens that the model is asked with; raises as :func:`prompt_text`."""
    return token_ids(tokenizer, prompt_text(tokenizer, messages))


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """``text`` as tokens, with nothing added: a template writes the special tokens itself."""
    return list(cast(Sequence[int], tokenizer(text, add_special_tokens=False)["input_ids"]))


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends an assistant's turn: the template's own, else end-of-sequence, else None.

    The template's own is the first added token (``<|im_end|>``) that it writes after an answer. One that closes turns with
    ordinary text, or not at all, has none: an answer cannot be ended by what may also be in it.
    """
    try:
        _, said, rest = _render(tokenizer, _PROBE, prompt=False).rpartition(_SAID)
    except TemplateError:
        said, rest = "", ""
    own = _added(tokenizer)
    ends = (i for i in token_ids(tokenizer, rest) if i in own) if said and rest else iter(())
    return next(ends, tokenizer.eos_token_id)


def _added(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that stand for more than their characters; runs of blanks, which some vocabularies add, do not."""
    named = {i for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    return named | set(tokenizer.all_special_ids)


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], prompt: bool) -> str:
    turns = [{"role": m.role, "content": m.content} for m in messages]
    return cast(str, tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt))


def _refused(error: TemplateError) -> ModelCallError:
    return ModelCallError("chat_template", f"the chat template refuses this: {error}")
