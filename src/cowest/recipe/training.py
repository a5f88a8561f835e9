"""The recipe's sections of trainings: ``sft`` and ``align``."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from cowest.recipe.models import Section


class LoraSettings(Section):
    """PEFT LoRA. Rank and targets are not in the paper; these are what the field uses."""

    r: int = Field(default=16, ge=1, description="Rank.")
    alpha: int = Field(default=32, ge=1, description="Scale.")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = Field(default="all-linear", description="Which layers get an adapter.")


class TrainingSettings(Section):
    """What SFT and alignment have in common."""

    how: ClassVar[frozenset[str]] = frozenset({"device", "checkpoint_every", "gradient_checkpointing"})

    method: Literal["lora", "full"] = Field(default="lora", description="Train a LoRA adapter, or all weights.")
    lora: LoraSettings = LoraSettings()
    batch_size: int = Field(default=16, ge=1, description="Sequences a step and device.")
    gradient_accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0, description="Peak, after warm-up.")
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "linear"
    warmup_steps: int = Field(default=10, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    epochs: float = Field(default=3.0, gt=0, description="Passes over the data, where max_steps is unset.")
    max_steps: int | None = Field(default=None, ge=1, description="Optimizer steps; overrides epochs.")
    max_length: int = Field(
        default=1024, ge=8, description="Tokens of prompt and completion; longer is cut and counted."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="auto: bfloat16 for a LoRA on a model stored in 16 bits, where the device multiplies in it (AMX, AVX512-BF16, "
        "CUDA 8.0); else float32.",
    )
    gradient_checkpointing: bool = False
    device: str = Field(default="auto", description="auto, cpu, cuda, mps.")
    checkpoint_every: int = Field(default=200, ge=1, description="Steps between resumable checkpoints.")


class SftConfig(TrainingSettings):
    """Stage sft: tune pi_w on (x, y_hat) by negative log-likelihood of the completion (paper, step 1)."""


class AlignConfig(TrainingSettings):
    """Stage align: preference tuning of pi_w with the SFT model as reference (step 6); picks a checkpoint."""

    objective: str = Field(
        default="preference",
        description="What alignment learns from; installed packages add objectives. preference: DPO on the pairs. positives: SFT "
        "on the chosen drafts alone, the control that shows what the comparison with the rejected ones adds. kto: single drafts "
        "with their worth, no pairs. rejection: SFT on the best draft of each query. grpo: RL on drafts drawn in training, each "
        "refined and scored at once, in place of the stages sample, feedback and pairs. off (also `align: off`): no alignment; "
        "feedback and pairs are still collected. docs/training.md: which when.",
    )
    learning_rate: float = Field(default=1.41e-5, gt=0, description="The paper's.")
    epochs: float = Field(default=1.0, gt=0, description="Passes over the pairs, where max_steps is unset.")
    beta: float = Field(default=0.1, gt=0, description="Strength of the pull to the reference.")
    loss: Literal["sigmoid", "ipo", "hinge", "robust", "apo_zero", "sigmoid_norm"] = Field(
        default="sigmoid", description="TRL's DPO loss_type."
    )
    nll_weight: float = Field(default=0.0, ge=0, description="Weight of an NLL term on the chosen draft (RPO).")
    weight: Literal["even", "margin"] = Field(
        default="even",
        description="What a pair counts (preference), or a draft (kto): all alike, or by its margin (over the rejected draft, or "
        "over its query's baseline), with a mean of 1.",
    )
    group: int = Field(
        default=4,
        ge=2,
        description="grpo: drafts of a query in a step, which are worth more or less than one another. A step asks the strong "
        "model up to batch_size x gradient_accumulation x group times.",
    )
    checkpoints: int = Field(default=4, ge=1, description="Evenly spaced checkpoints to choose from.")
    selection_queries: int = Field(
        default=150, ge=1, description="Validation queries on which each checkpoint's collaboration is scored."
    )

    @field_validator("objective", mode="before")
    @classmethod
    def _yaml_off(cls, value: object) -> object:
        return "off" if value is False else value  # YAML 1.1 reads off as false

    @property
    def compares(self) -> bool:
        """Whether a row of alignment is two drafts, as far as is known; False for cowest's own objectives on single ones."""
        return self.objective not in ("positives", "kto", "rejection", "grpo")

    @property
    def sequences(self) -> int:
        """How many drafts a row of alignment is, as far as is known."""
        return self.group if self.objective == "grpo" else 2 if self.compares else 1
