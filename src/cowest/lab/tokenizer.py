"""The lab's tokenizer: byte-level BPE with single digits, trained on the lab's own text, with a chat template."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from cowest.lab.corpus import samples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 1024
SPECIAL = ("<pad>", "<user>", "<assistant>", "<system>", "<end>")
TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "<assistant>{% generation %}{{ message['content'] }}<end>{% endgeneration %}"
    "{%- else -%}<{{ message['role'] }}>{{ message['content'] }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<assistant>{%- endif -%}"
)


def build_tokenizer(texts: int = 30_000, seed: int = 0) -> PreTrainedTokenizerFast:
    """Train it on ``texts`` samples of each model's corpus. The same arguments always give the same tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\d|[A-Z][a-z]*| ?[a-z]+| ?[^\w\s]+|\s"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(texts, seed), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", padding_side="left", model_max_length=512
    )
    fast.chat_template = TEMPLATE
    return fast


def _texts(count: int, seed: int) -> Iterator[str]:
    for role in ("strong", "weak"):
        for sample in islice(samples(role, seed), count):
            yield from (m.content for m in sample.messages)
            yield sample.reply
