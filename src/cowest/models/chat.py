"""Chat templates: how a conversation becomes one string, for models that bring no template of their own.

Base models have none. They get :data:`PLAIN_TEMPLATE`, a ChatML-like layout in ordinary characters (no token has to be
added to the vocabulary), which ends the assistant's turn with the tokenizer's end-of-sequence token, so that SFT
teaches the model to stop. Training saves it with the tokenizer, and generation finds it there again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cowest.errors import ConfigError

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


def ensure_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Give ``tokenizer`` the plain template if it has none, and a padding token if it has none; True if it was changed.

    Raises ConfigError for a tokenizer without an end-of-sequence token: such a model could never learn to stop.
    """
    changed = False
    if not tokenizer.chat_template:
        if not tokenizer.eos_token:
            raise ConfigError("the model's tokenizer has neither a chat template nor an end-of-sequence token")
        tokenizer.chat_template = PLAIN_TEMPLATE
        changed = True
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        changed = True
    return changed
