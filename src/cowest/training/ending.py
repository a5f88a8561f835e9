"""How a training begins and ends an answer.

It begins after thinking that is closed: see :func:`cowest.models.chat.close_thinking`.

It ends with the chat template's end of turn, where all weights are trained: SFT teaches that, whatever the base knew of it. A LoRA
leaves the embeddings and the head as they are: a token that was only added to the vocabulary (``<|im_end|>`` in many bases) has
a row there that was never trained, and no adapter makes the model write it. It teaches the end that the base expects most
instead; preference tuning goes on with the one that its policy expects most. Generation stops on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cowest.errors import StageError
from cowest.models.chat import close_thinking, turn_end
from cowest.models.local import end_ids, load_tokenizer, resolve_device
from cowest.protocols import Reporter
from cowest.recipe.config import TrainingSettings
from cowest.training.encoding import encode
from cowest.types import Message, ModelRef

ASKED: Final = 8  # answers after which the model is asked what it expects
SAMPLED: Final = 2048  # rows of the head that tell what a trained one looks like
UNTRAINED: Final = 0.1
"""A row this much nearer to the mean than the median row is: new rows begin as the mean, or as zeros."""

Said = tuple[Sequence[Message], str]


def tokenizer_for_training(ref: ModelRef, stage: str, reporter: Reporter) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a template that leaves no thinking open where an answer begins; one line tells of a change."""
    tokenizer = load_tokenizer(ref)
    opening = close_thinking(tokenizer)
    if opening:
        reporter.info(
            f"{stage}: the chat template's prompt opens {opening}: it is closed there, in training and in the template of the "
            "trained model, so that what is written after it is the answer"
        )
    return tokenizer


def taught_end(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: TrainingSettings,
    said: Sequence[Said],
    name: str,
    stage: str,
) -> int:
    """The token that ends the answers of a training of ``model`` (called ``name``) on what is ``said``, prompts with answers.

    Raises StageError where nothing ends a text, or only tokens that an adapter cannot teach.
    """
    own, known = turn_end(tokenizer), end_ids(model, tokenizer)
    if not known:
        raise StageError(
            f"{name}: its chat template ends no turn and its tokenizer has no end-of-sequence token, so the model would never "
            "stop; set eos_token in tokenizer_config.json"
        )
    if stage == "sft" and settings.method == "full":
        return known[0] if own is None else own
    if settings.method == "lora":
        teachable = [i for i in known if _trained(model, i)]
        if not teachable:
            marks = ", ".join(str(tokenizer.convert_ids_to_tokens(i)) for i in known)
            raise StageError(
                f"{name}: its head was never trained on what ends a text ({marks}), and {stage}.method lora cannot teach it, so "
                f"the model would never stop; use {stage}.method full, or a base with another eos_token"
            )
        known = teachable
    if len(known) == 1:
        return known[0]
    return _expected(model, tokenizer, settings, said[:ASKED], known, name)


def _trained(model: PreTrainedModel, token: int) -> bool:
    head = model.get_output_embeddings()
    if head is None or not isinstance(weight := getattr(head, "weight", None), torch.Tensor):
        return True  # nothing is known of it
    with torch.no_grad():
        mean = weight.float().mean(0)
        some = weight[:: max(1, len(weight) // SAMPLED)].float()
        usual, size = (some - mean).norm(dim=1).median(), some.norm(dim=1).median()
        row = weight[token].float()
        return bool((row - mean).norm() > UNTRAINED * usual and row.norm() > UNTRAINED * size)


def _expected(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: TrainingSettings,
    said: Sequence[Said],
    ends: Sequence[int],
    name: str,
) -> int:
    """The one of ``ends`` with the highest mean log-probability after the answers; the first of equals."""
    torch.nn.Module.to(model, resolve_device(settings.device))  # where the Trainer will have it
    total = torch.zeros(len(ends), dtype=torch.float64)
    for ids, _ in encode(tokenizer, [prompt for prompt, _ in said], [text for _, text in said], name, ends[0]):
        asked = torch.tensor([ids[:-1][-settings.max_length :]], device=model.device)
        with torch.inference_mode():
            logs = model(input_ids=asked, use_cache=False).logits[0, -1].float().log_softmax(-1)
        total += logs[list(ends)].double().cpu()
    return ends[int(total.argmax())]


def tell_end(tokenizer: PreTrainedTokenizerBase, end: int, reporter: Reporter) -> None:
    """One line where answers end with another token than the tokenizer's, or the template's."""
    own, mark = turn_end(tokenizer), tokenizer.convert_ids_to_tokens(end)
    if own not in (None, end):
        reporter.info(
            f"sft: the chat template ends a turn with {tokenizer.convert_ids_to_tokens(own)}, which an adapter cannot teach this "
            f"base, or which it expects less than {mark}: the model learns {mark}, and generation stops on both"
        )
    elif end != tokenizer.eos_token_id:
        reporter.info(
            f"sft: the chat template ends a turn with {mark}, the tokenizer a text with {tokenizer.eos_token}: the model learns "
            "the first, and generation stops on both"
        )
