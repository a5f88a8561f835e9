"""The sections of a recipe that describe a model: one that runs here, one behind an endpoint, or a script."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from cowest.recipe.addresses import base_url_problem, extra_problem, variable_problem

T = TypeVar("T")


class Section(BaseModel):
    """Base of all sections: immutable, and an unknown key is an error.

    ``how`` names the settings that say how something is done and cannot change what comes out: to change one of them makes
    nothing stale.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    how: ClassVar[frozenset[str]] = frozenset()

    def resolved(self, folder: Path) -> Self:
        """The section with its relative paths made absolute; they start at the recipe's ``folder``."""
        return self


class EngineOptions(Section):
    """Of a managed engine (``vllm``, ``llamacpp``): a server that cowest starts."""

    how: ClassVar[frozenset[str]] = frozenset({"kv_cache_gib", "start_timeout_s"})

    max_model_len: int | None = Field(
        default=None, ge=64, description="The window in tokens; unset: the model's own, and at most 8,192."
    )
    kv_cache_gib: float = Field(
        default=4.0, gt=0, description="GiB for the keys and values of requests under way (vllm)."
    )
    arguments: tuple[str, ...] = Field(
        default=(), description="More arguments of vLLM's server, such as --tensor-parallel-size, '2'."
    )
    start_timeout_s: float = Field(default=900.0, gt=0, description="Seconds until it must answer.")


class LocalModelConfig(Section):
    """A causal language model that runs here, through transformers (and PEFT for an adapter) or a server that cowest starts."""

    how: ClassVar[frozenset[str]] = frozenset({"device", "batch_size", "engine_python"})
    trainable: ClassVar[bool] = True

    kind: Literal["local"]
    model: str = Field(
        description="A hub name, a folder, a GGUF file, or lab:strong, lab:weak and their smaller ones (shipped)."
    )
    adapter: str | None = Field(default=None, description="A PEFT adapter's folder or hub name.")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="auto: on an accelerator the checkpoint's own; on a CPU bfloat16 where it is native and agrees, else float32.",
    )
    batch_size: int = Field(default=64, ge=1, description="Most prompts generated together.")
    engine: str = Field(
        default="process",
        description="Where the weights answer: process (this one), vllm or llamacpp (a server that cowest starts), or an "
        "installed package's engine.",
    )
    engine_python: Path | None = Field(
        default=None, description="The Python that has vllm or xllamacpp; unset: cowest's own."
    )
    engine_options: EngineOptions = EngineOptions()

    def resolved(self, folder: Path) -> Self:
        """A folder or file beside the recipe goes before a hub name; an engine's Python may lie beside it, too."""
        python = self.engine_python
        if python is not None and len(python.parts) > 1:
            python = Path(os.path.abspath(folder / python.expanduser()))  # a venv's python is a link, and must stay one
        return self.model_copy(update={"model": beside(folder, self.model), "engine_python": python})


def beside(folder: Path, name: str) -> str:
    """The folder or file of this name beside a recipe, where there is one; else the name."""
    return str((folder / name).resolve()) if (folder / name).exists() else name


class PriceConfig(Section):
    """USD for a million tokens, as on your provider's price page; overrides cowest's dated table."""

    input: float = Field(ge=0, description="USD for 1,000,000 prompt tokens.")
    output: float = Field(ge=0, description="USD for 1,000,000 generated tokens, hidden reasoning included.")


class BatchSettings(Section):
    """A provider's batch API (files and batches, as OpenAI's), used where ``feedback.mode`` is ``batch``."""

    max_requests: int = Field(default=50_000, ge=1, description="Most requests in one batch.")
    poll_s: float = Field(default=30.0, gt=0, description="Seconds between two looks at a batch.")
    discount: float = Field(default=0.5, ge=0, lt=1, description="What the provider takes off the price in a batch.")


class OpenAIModelConfig(Section):
    """Any OpenAI-compatible endpoint. ``auto`` follows what is known of the model, and learns from the endpoint's errors."""

    how: ClassVar[frozenset[str]] = frozenset(
        {
            "base_url", "api_key_env", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout_s", "connect_timeout_s",
            "stall_timeout_s", "max_attempts", "stream", "token_limit", "temperature", "seed", "system_prompt", "structured",
            "tools", "samples_per_call", "ca_file", "price", "tokenizer", "window", "batch",
        }
    )  # fmt: skip
    model_config = ConfigDict(hide_input_in_errors=True)  # what is wrong may be a key in the wrong place

    trainable: ClassVar[bool] = False

    kind: Literal["openai"]
    model: str = Field(description="The name that the endpoint knows the model by.")
    base_url: str = Field(
        default="https://api.openai.com/v1",
        description="Up to and including /v1; a query (?api-version=...) stays at the end. ${NAME} is a variable's value.",
    )
    api_key_env: str | None = Field(
        default="OPENAI_API_KEY",
        description="The environment variable (or line of a .env file) with the key; null for a server without keys.",
    )
    concurrency: int = Field(default=16, ge=1, description="Most requests under way at once.")
    requests_per_minute: float | None = Field(default=None, gt=0, description="Your rate limit; unset: none is kept.")
    tokens_per_minute: float | None = Field(
        default=None, gt=0, description="Your limit of prompt and answer tokens together; unset: none is kept."
    )
    timeout_s: float = Field(default=120.0, gt=0, description="Seconds that one attempt may take.")
    connect_timeout_s: float = Field(default=10.0, gt=0, description="Seconds until the connection must stand.")
    stall_timeout_s: float = Field(
        default=60.0, gt=0, description="With stream: seconds until the first piece, and between two pieces."
    )
    max_attempts: int = Field(default=6, ge=1, description="Attempts for one request, the first included.")
    stream: bool = Field(default=False, description="Ask for a stream, to notice a stalled answer early.")
    token_limit: Literal["auto", "max_tokens", "max_completion_tokens"] = Field(
        default="auto", description="How the endpoint calls the limit; reasoning models want the second."
    )
    temperature: Literal["auto", "send", "omit"] = Field(
        default="auto", description="Reasoning models reject temperature and top_p."
    )
    seed: Literal["auto", "send", "omit"] = Field(default="auto", description="Some endpoints reject a seed.")
    system_prompt: Literal["auto", "keep", "merge"] = Field(
        default="auto", description="merge puts it before the first user turn, for models without a system role."
    )
    structured: Literal["auto", "json_schema", "json_object", "prompt"] = Field(
        default="auto", description="How JSON is asked for (judges)."
    )
    tools: Literal["auto", "send", "omit"] = Field(
        default="auto",
        description="Whether collab_consult offers its question as a tool call; omit: as a line of text.",
    )
    samples_per_call: int = Field(default=1, ge=1, description="Most samples bought in one request (n).")
    extra: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="More fields of the request, such as reasoning_effort: low. ${NAME} in a text is a variable's value.",
    )
    ca_file: Path | None = Field(
        default=None, description="Certificates (PEM) to trust beside the system's; verification cannot be turned off."
    )
    price: PriceConfig | None = Field(default=None, description="Unset: the dated table that ships with cowest.")
    tokenizer: str | None = Field(
        default=None, description="Folder or hub name of its tokenizer, for estimates; unset: an approximation."
    )
    window: int | None = Field(
        default=None,
        ge=256,
        description="The model's context window in tokens: passages and in-context examples that do not fit are left out, and "
        "counted. Unset: nothing is left out, and the endpoint rejects what is too long.",
    )
    batch: BatchSettings = BatchSettings()

    @field_validator("model")
    @classmethod
    def _named(cls, model: str) -> str:
        if not model or any(c.isspace() or not c.isprintable() for c in model):
            raise ValueError("must be the model's name at the endpoint, without blanks")
        return model

    @field_validator("base_url")
    @classmethod
    def _usable(cls, base_url: str) -> str:
        return _checked(base_url, base_url_problem(base_url))

    @field_validator("api_key_env")
    @classmethod
    def _a_variable(cls, name: str | None) -> str | None:
        return name if name is None else _checked(name, variable_problem(name))

    @field_validator("extra")
    @classmethod
    def _not_ours(cls, extra: dict[str, JsonValue]) -> dict[str, JsonValue]:
        ours = sorted(extra.keys() & {"messages", "model", "n", "stream", "stream_options"})
        if ours:
            raise ValueError(f"{', '.join(ours)}: set by cowest itself and not to be given here")
        return _checked(extra, extra_problem(extra))

    def resolved(self, folder: Path) -> Self:
        """Certificates may lie beside the recipe."""
        return self if self.ca_file is None else self.model_copy(update={"ca_file": (folder / self.ca_file).resolve()})


def _checked(value: T, problem: str | None) -> T:
    if problem is not None:
        raise ValueError(problem)
    return value


class ScriptRuleConfig(Section):
    """One rule of a scripted model."""

    contains: str
    reply: str


class ScriptedModelConfig(Section):
    """A deterministic model for tests and for trying a recipe: the first rule that fits gives the reply."""

    trainable: ClassVar[bool] = False

    kind: Literal["scripted"]
    rules: tuple[ScriptRuleConfig, ...] = ()
    default: str | None = Field(default=None, description="The reply when no rule fits; unset: an error.")


class ObjectModelConfig(Section):
    """A Python object that a script hands over (`cowest.api.run(recipe, strong=...)`); written by cowest itself."""

    trainable: ClassVar[bool] = False

    kind: Literal["object"]
    name: str = Field(description="What the object calls itself.")

    @property
    def model(self) -> str:
        """Its name."""
        return self.name


class PluginModelConfig(Section):
    """A model of an installed package, found by its entry point in the group ``cowest.models``."""

    trainable: ClassVar[bool] = False

    kind: Literal["plugin"]
    name: str = Field(description="The entry point's name.")
    options: dict[str, JsonValue] = Field(default_factory=dict, description="Passed to the plug-in as they are.")

    @property
    def model(self) -> str:
        """Its name."""
        return self.name


ModelConfig = Annotated[
    LocalModelConfig | OpenAIModelConfig | ScriptedModelConfig | ObjectModelConfig | PluginModelConfig,
    Field(discriminator="kind"),
]

ServedOrLocalConfig = Annotated[
    LocalModelConfig | OpenAIModelConfig | ObjectModelConfig | PluginModelConfig, Field(discriminator="kind")
]
