"""GRPO: drafts are drawn while the model trains, and the better of a query's drafts become more likely (arXiv 2402.03300, 4.1).

    A_i = (r_i - mean r) / (std r + 1e-4)                              over the ``align.group`` drafts of a query in a step
    L = - sum over the drafts' tokens of [rho A_i - beta KL] / tokens,  KL = pi_ref/pi - log pi_ref/pi - 1

through TRL's GRPOTrainer with its default loss (``dapo``: a mean over the step's tokens, arXiv 2503.14476). Drafts are drawn by
the weights of their own step, so rho = pi/pi_old is 1 and nothing is clipped. The reference is the policy before the first step.

A draft without a reward (None) has no advantage, and no part in its group's mean and deviation; only the KL term moves it. Which
queries and drafts a step has follows from the seed, the step and the weights: a training that is resumed draws what it drew before.
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from pydantic import JsonValue
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined,unused-ignore]
from trl.trainer.utils import add_fused_lm_head

from cowest.errors import ModelCallError, NothingToLearnError, StageError
from cowest.models.chat import prompt_text, token_ids
from cowest.models.local import end_ids, resolve_device
from cowest.models.token_text import answer_text
from cowest.protocols import Reporter, Tracker
from cowest.recipe.config import AlignConfig
from cowest.run.identity import derive_seed
from cowest.run.progress import NOWHERE
from cowest.training.checkpoints import KeepCallback, kept_models
from cowest.training.common import Folder, LogCallback, arguments, fingerprint, new_adapter, release
from cowest.training.encoding import Cut
from cowest.training.ending import tokenizer_for_training
from cowest.training.loop import load_within_memory, train_within_memory
from cowest.training.notices import quiet
from cowest.training.objectives import Practice, Query, online_steps
from cowest.training.precision import settled
from cowest.types import Alignment, Completion, ModelRef, Sampling

PATIENCE: Final = 64
"""Drafts without any reward before a training ends: the first ones, so that nothing is paid for in vain."""
QUIET_STEPS: Final = 10
"""Steps in a row in which no group's rewards differ, before that is said."""
UNSCORED: Final = "unscored"
ALIKE: Final = "groups_alike"
"""Columns of log.jsonl: the share of a step's drafts without a reward, and of its groups whose rewards do not differ."""


def train_grpo(
    policy: ModelRef,
    practice: Practice,
    settings: AlignConfig,
    out: Path,
    seed: int,
    reporter: Reporter,
    tracker: Tracker = NOWHERE,
) -> Alignment:
    """Tune ``policy`` on drafts of its own; the folder, the checkpoints and the errors are ``train_preference``'s.

    The counts: drafts, groups (a query in a step), and how many of them taught nothing. Raises NothingToLearnError where no draft
    had a reward, or no two of any group had different ones; what the reward raises goes through.
    """
    started = time.perf_counter()
    folder = Folder(out)
    settings = settled(settings, policy.base)
    drawn = Query(example_id=practice.sampling.model_copy(update={"seed": None}).model_dump_json(), prompt=())
    done = folder.open(fingerprint("grpo", policy, settings, [drawn, *practice.queries], seed))
    if done is None:
        with quiet(_told(reporter)):
            done = _train(policy, practice, settings, folder, seed, reporter, tracker, started)
    release()
    return Alignment(checkpoints=kept_models(policy, settings, out), counts=counted(folder, settings))


def _told(reporter: Reporter) -> Callable[[str], None]:
    def tell(warning: str) -> None:
        if "All reward functions returned None" not in warning:  # with the whole prompt; it is counted here
            reporter.info(f"align: {warning}")

    return tell


def _train(
    policy: ModelRef,
    practice: Practice,
    settings: AlignConfig,
    folder: Folder,
    seed: int,
    reporter: Reporter,
    tracker: Tracker,
    started: float,
) -> Any:
    tokenizer = tokenizer_for_training(policy, "align", reporter)
    loaded = load_within_memory(policy, settings, "align")
    model = cast(PreTrainedModel, loaded.model)
    ends = end_ids(model, tokenizer)
    if not ends:
        raise StageError(f"{policy.base}: nothing ends a text of this model: set eos_token in tokenizer_config.json")
    prompts, longest = asked(tokenizer, practice, settings, policy.base)
    data = Cut(items=len(practice.queries), lost=len(practice.queries) - len(prompts))
    data.tell(reporter, "align", "queries", settings.max_length)
    if not prompts:
        raise NothingToLearnError(
            f"align: no query's prompt and draft.sampling.max_tokens = {practice.sampling.max_tokens} fit into align.max_length = "
            f"{settings.max_length} tokens together; raise it"
        )
    reference = _reference(model, settings, practice.sampling) if settings.method == "full" else None
    groups = Groups(practice, settings, ends, tokenizer, reporter)
    lora, callback = new_adapter(policy, settings), LogCallback(folder, reporter, "align", tracker)
    keep = KeepCallback(folder.path, tokenizer, settings)

    def build(model: PreTrainedModel, fitting: AlignConfig) -> GroupTrainer:
        return group_trainer(
            model,
            lora,
            reference,
            prompts,
            groups,
            practice.sampling,
            fitting,
            folder,
            seed,
            tokenizer,
            [callback, keep],
        )

    train_within_memory(loaded, settings, longest, settings.group, folder, "align", reporter, build)
    summary = callback.summary(data, started)
    found = counted(folder, settings)
    if found["groups"] == found[ALIKE]:
        raise NothingToLearnError(
            f"align: in none of {found['groups']} groups were two drafts worth different amounts; more align.group, a higher "
            "draft.sampling.temperature or a finer score (feedback.expect, feedback.metric) tell them apart"
        )
    folder.finish(summary)
    return summary


def asked(
    tokenizer: PreTrainedTokenizerBase, practice: Practice, settings: AlignConfig, model: str
) -> tuple[list[tuple[str, str]], int]:
    """Each query's id and prompt, as text, where a whole draft fits into ``align.max_length``; and the tokens of the longest."""
    kept, longest = list[tuple[str, str]](), 0
    for query in practice.queries:
        try:
            text = prompt_text(tokenizer, query.prompt)
        except ModelCallError as error:
            raise StageError(f"{model}: {error}") from None
        whole = len(token_ids(tokenizer, text)) + practice.sampling.max_tokens
        if whole <= settings.max_length:
            kept.append((query.example_id, text))
            longest = max(longest, whole)
    return kept, longest


def order(queries: int, settings: AlignConfig, seed: int) -> list[list[int]]:
    """The queries of each step, by number: one random order after the other, and every step full."""
    rows, steps = settings.batch_size * settings.gradient_accumulation, online_steps(settings, queries)
    drawn, found = random.Random(f"cowest-grpo/{seed}"), list[int]()
    while len(found) < steps * rows:
        found += drawn.sample(range(queries), queries)
    return [found[i * rows : (i + 1) * rows] for i in range(steps)]


@dataclass(slots=True)
class Groups:
    """The reward function that TRL calls, with a look at what it gives."""

    practice: Practice
    settings: AlignConfig
    ends: Sequence[int]
    tokenizer: PreTrainedTokenizerBase
    reporter: Reporter
    drafts: int = 0
    scored: int = 0
    quiet: int = 0

    def __call__(
        self,
        prompts: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        example_id: Sequence[str],
        log_metric: Callable[[str, float], None],
        **_: object,
    ) -> list[float | None]:
        """Rewards of a step's drafts, group by group. Raises NothingToLearnError where none had one so far."""
        made = [self._completion(ids) for ids in completion_ids]
        values = self.practice.reward(prompts, made, example_id)
        size = self.settings.group
        alike = [not varied(values[i : i + size]) for i in range(0, len(values), size)]
        log_metric(UNSCORED, sum(value is None for value in values) / len(values))
        log_metric(ALIKE, sum(alike) / len(alike))
        self._look(values, all(alike))
        return values

    def _completion(self, ids: Sequence[int]) -> Completion:
        ended = bool(ids) and ids[-1] in self.ends
        text = answer_text(self.tokenizer, list(ids[:-1] if ended else ids))
        return Completion(text=text, finish_reason="stop" if ended else "length")

    def _look(self, values: Sequence[float | None], alike: bool) -> None:
        self.drafts += len(values)
        self.scored += sum(value is not None for value in values)
        if not self.scored and self.drafts >= PATIENCE:
            raise NothingToLearnError(f"align: none of the first {self.drafts} drafts has a reward")
        self.quiet = self.quiet + 1 if alike else 0
        if self.quiet == QUIET_STEPS:
            self.reporter.info(
                f"align: warning: in the last {QUIET_STEPS} steps all drafts of a query were worth the same: nothing is learned "
                "from them. What helps: more align.group, a higher draft.sampling.temperature, or a finer score (feedback.expect)"
            )


def varied(rewards: Sequence[float | None]) -> bool:
    """Whether a group's rewards differ, those that there are."""
    return len({value for value in rewards if value is not None}) > 1


def counted(folder: Folder, settings: AlignConfig) -> dict[str, int]:
    """What a training came to, from its log, which is whole after a stop as well."""
    rows = [json.loads(line) for line in folder.log.read_text(encoding="utf-8").splitlines()]
    groups = settings.batch_size * settings.gradient_accumulation
    drafts = groups * settings.group
    return {
        "groups": groups * len(rows),
        ALIKE: sum(round(row[ALIKE] * groups) for row in rows),
        "drafts_drawn": drafts * len(rows),
        "drafts_unscored": sum(round(row[UNSCORED] * drafts) for row in rows),
    }


class GroupTrainer(GRPOTrainer):  # type: ignore[misc,unused-ignore]
    """GRPOTrainer that asks as cowest's models are asked, and draws the same again when it is resumed."""

    drawn_from: int = 0

    def _tokenize_prompts(self, prompts: Sequence[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        # TRL would add a second token that begins a text: the template has written it.
        tokenizer = cast(PreTrainedTokenizerBase, self.processing_class)
        return [token_ids(tokenizer, prompt) for prompt in prompts], None, {}

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        # Drafts are drawn, and shuffled, in here, once a step. Whatever was drawn before a stop, or by whom, makes no difference.
        torch.manual_seed(derive_seed("grpo", self.drawn_from, self.state.global_step))
        return super()._prepare_inputs(generation_batch)


def group_trainer(
    model: PreTrainedModel,
    lora: LoraConfig | None,
    reference: PreTrainedModel | None,
    prompts: Sequence[tuple[str, str]],
    groups: Groups,
    sampling: Sampling,
    settings: AlignConfig,
    folder: Folder,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    callbacks: list[TrainerCallback],
) -> GroupTrainer:
    """A trainer of ``model``, or of a new adapter ``lora`` of it. ``reference``: where all weights are trained."""
    steps = order(len(prompts), settings, seed)
    rows = [{"prompt": prompts[i][1], "example_id": prompts[i][0]} for step in steps for i in step]
    special: dict[str, JsonValue] = {
        "per_device_train_batch_size": settings.batch_size * settings.group,
        "num_generations": settings.group,
        "max_completion_length": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "beta": settings.beta if reference is None else 0.0,  # with one, TRL would load another from disk
        "shuffle_dataset": False,
        "num_train_epochs": 1,
        "max_steps": len(steps),
        "disable_dropout": True,
    }
    if model.generation_config is not None:
        model.generation_config.eos_token_id = list(groups.ends)
    trainer = GroupTrainer(
        model=model,
        reward_funcs=[groups],
        args=arguments(GRPOConfig, settings, folder, seed, 1, special),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=callbacks,
    )
    trainer.drawn_from = seed
    trainer.remove_callback(PrinterCallback)  # it prints to stdout, where results go
    if reference is not None:
        trainer.ref_model, trainer.beta = reference, settings.beta
    if isinstance(adapted := trainer.model, PeftModel):
        # Of an adapter that is trained further TRL keeps a copy as the reference. Resumable checkpoints are to hold one.
        adapted.save_pretrained = partial(adapted.save_pretrained, selected_adapters=["default"])  # type: ignore[method-assign]
    return trainer


def _reference(model: PreTrainedModel, settings: AlignConfig, sampling: Sampling) -> PreTrainedModel:
    """The policy before the first step, as TRL's trainer wants it."""
    frozen = copy.deepcopy(model)
    frozen.eval().requires_grad_(False)
    torch.nn.Module.to(frozen, resolve_device(settings.device))
    add_fused_lm_head(frozen, temperature=sampling.temperature)
    return frozen
