"""Chat templates of the kinds that people fine-tune, and the lab's tokenizer with one of them."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from cowest.lab.tokenizer import build_tokenizer

TURN = "{%- for m in messages -%}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|stop|>\n' }}{%- endfor -%}"
OWN_END = TURN + "{%- if add_generation_prompt -%}{{ '<|start|>assistant\n' }}{%- endif -%}"
OPENS_THINKING = TURN + "{%- if add_generation_prompt -%}{{ '<|start|>assistant\n<think>\n' }}{%- endif -%}"
EMPTY_THINKING = OWN_END.replace(
    "+ m['content']", "+ ('<think>\n\n</think>\n\n' if m['role'] == 'assistant' and loop.last else '') + m['content']"
)
ORDINARY_END = (
    "{%- for m in messages -%}{{ '[' + m['role'] + '] ' + m['content'] + ' [over]\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '[assistant] ' }}{%- endif -%}"
)
NO_END = (
    "{%- for m in messages -%}{{ ('A: ' if m['role'] == 'assistant' else 'Q: ') + m['content'] }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '\nA: ' }}{%- endif -%}"
)
BLANK_BEFORE_EOS = (
    "{%- for m in messages -%}{%- if m['role'] == 'user' -%}[INST] {{ m['content'] | trim }} [/INST]"
    "{%- else -%}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{%- endif -%}{%- endfor -%}"
)
STRICT = (
    "{%- for m in messages -%}"
    "{%- if m['role'] == 'system' -%}{{ raise_exception('no system role') }}{%- endif -%}"
    "{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles must alternate') }}{%- endif -%}"
    "<{{ m['role'] }}>{{ m['content'] }}{%- if m['role'] == 'assistant' -%}<end>{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<assistant>{%- endif -%}"
)
DEAF_TO_SYSTEM = (
    "{%- for m in messages if m['role'] != 'system' -%}<{{ m['role'] }}>{{ m['content'] | trim }}"
    "{%- if m['role'] == 'assistant' -%}<end>{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<assistant>{%- endif -%}"
)
ENDS = {
    "own end": (OWN_END, "<|stop|>"),
    "opens thinking": (OPENS_THINKING, "<|stop|>"),
    "empty thinking": (EMPTY_THINKING, "<|stop|>"),
    "ordinary end": (ORDINARY_END, "<end>"),
    "no end": (NO_END, "<end>"),
    "blank before eos": (BLANK_BEFORE_EOS, "<end>"),
    "strict": (STRICT, "<end>"),
    "deaf to system": (DEAF_TO_SYSTEM, "<end>"),
}
"""By name: the template, and the token that ends a turn of it."""


def tokenizer_with(
    template: str, more: Sequence[str] = ("<|start|>", "<|stop|>", "<think>", "</think>")
) -> PreTrainedTokenizerFast:
    """The lab's tokenizer (eos is ``<end>``) with ``more`` special tokens."""
    tokenizer = build_tokenizer(texts=500)
    tokenizer.add_special_tokens({"additional_special_tokens": list(more)}, replace_extra_special_tokens=False)
    tokenizer.chat_template = template
    return tokenizer
