"""A causal language model on this machine, through transformers, with a PEFT adapter where one was trained.

Concurrent callers are batched: requests queue, a worker sorts those that wait by prompt length and decodes them in
batches of up to ``batch_size`` on one thread (see ``models/batching.py``). Weights come from safetensors files only,
and no code from a checkpoint is ever run.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cowest.errors import MissingExtraError, ModelCallError, ModelNotFoundError
from cowest.models.batching import Decoded, Decoder, Interrupted, Row
from cowest.models.chat import ensure_chat_template, prompt_ids, turn_end
from cowest.models.thinking import opens_thinking
from cowest.models.token_text import answer_text, token_logprobs
from cowest.run.progress import no_hub_bars
from cowest.types import Completion, Message, ModelRef, Sampling, TokenLogprob, Usage

ADAPTER_CONFIG = "adapter_config.json"
_OPENING_TOKENS = 32  # of a prompt's end, in which a template may open thinking


def resolve_device(device: str) -> torch.device:
    """``auto`` is the first CUDA device, else Apple's MPS, else the CPU."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_tokenizer(ref: ModelRef) -> PreTrainedTokenizerBase:
    """The adapter's tokenizer if it has one, else the base's; with a chat template and a padding token in any case.

    Raises ModelNotFoundError.
    """
    name = ref.base
    if ref.adapter is not None and (Path(ref.adapter) / "tokenizer_config.json").is_file():
        name = ref.adapter
    else:
        _check_path(name)
    try:
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(name, trust_remote_code=False))
    except (OSError, ValueError) as error:
        raise _not_found(name, "tokenizer", error) from None
    ensure_chat_template(tokenizer)
    tokenizer.padding_side = "left"
    return tokenizer


def load_model(
    ref: ModelRef, *, device: torch.device, dtype: torch.dtype | None, trainable: bool = False
) -> PreTrainedModel:
    """Base and adapter, in evaluation mode; ``dtype`` None is the checkpoint's own.

    The adapter is merged into the weights, which costs nothing later; with ``trainable`` it stays apart and its
    parameters require gradients. Raises ModelNotFoundError, or MissingExtraError without PEFT.
    """
    _check_path(ref.base)
    try:
        with no_hub_bars():
            loaded = AutoModelForCausalLM.from_pretrained(
                ref.base, dtype=dtype or "auto", use_safetensors=True, trust_remote_code=False
            )
    except (OSError, ValueError) as error:
        raise _not_found(ref.base, "model", error) from None
    model = cast(PreTrainedModel, loaded)
    if ref.adapter is not None:
        model = _with_adapter(model, ref.adapter, trainable)
    torch.nn.Module.to(model, device)  # in place; transformers' own signature of it is not typed
    model.eval()
    return model


def _with_adapter(model: PreTrainedModel, adapter: str, trainable: bool) -> PreTrainedModel:
    _check_path(adapter, ADAPTER_CONFIG)
    try:
        from peft import PeftModel  # heavy, and not everyone has adapters
    except ImportError:
        raise MissingExtraError("an adapter needs PEFT: pip install 'cowest[local]'") from None
    try:
        adapted = PeftModel.from_pretrained(model, adapter, is_trainable=trainable, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise _not_found(adapter, "adapter", error) from None
    return cast(PreTrainedModel, adapted if trainable else adapted.merge_and_unload())


def _check_path(name: str, needed: str = "config.json") -> None:
    path = Path(name).expanduser()
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or path.is_absolute()
    if path.is_dir():
        if not (path / needed).is_file():
            raise ModelNotFoundError(f"{name}: this folder holds no model: it has no {needed}")
    elif looks_like_path:
        raise ModelNotFoundError(f"{name}: no such folder; a model is a folder with a {needed}, or a hub name")


def _not_found(name: str, what: str, error: Exception) -> ModelNotFoundError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    hint = ""
    if not Path(name).is_dir():
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0") or os.environ.get("TRANSFORMERS_OFFLINE")
        hint = (
            " The hub is switched off (HF_HUB_OFFLINE), so only models in the local cache or in a folder can be used."
            if offline
            else " Check the name, the network, and for a gated model that you are logged in (`hf auth login`)."
        )
    elif "safetensors" in reason:
        hint = " Only safetensors weights are loaded; convert the checkpoint with save_pretrained."
    return ModelNotFoundError(f"{name}: the {what} cannot be loaded: {reason}{hint}")


@dataclass(slots=True, eq=False)
class _Request:
    row: Row
    opening: str
    """What the chat template has written of the answer: the mark that opens thinking, or nothing."""
    future: asyncio.Future[Completion]
    loop: asyncio.AbstractEventLoop
    hear: Callable[[list[int]], None] | None = None
    """Gets the tokens so far after each step, in the event loop."""
    started: float = field(default_factory=time.perf_counter)


class LocalChatModel:
    """Implements :class:`cowest.protocols.ChatModel` for a checkpoint on this machine.

    Args:
        ref: The base (a folder or a hub name) and, where one was trained, its adapter.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``auto`` (the checkpoint's own on an accelerator, float32 on a CPU) or the name of a torch dtype.
        batch_size: Most rows decoded together.
        name: How the model is called in results; unset: the last part of its path.

    A request with a seed gives the same text in any batch (up to rounding, see ``models/batching.py``). Raises
    ModelNotFoundError where the path or name leads to no model.
    """

    def __init__(
        self, ref: ModelRef, *, device: str = "auto", dtype: str = "auto", batch_size: int = 64, name: str | None = None
    ) -> None:
        place = resolve_device(device)
        chosen = torch.float32 if dtype == "auto" and place.type == "cpu" else _dtype(dtype)
        self._name = name or Path(ref.adapter or ref.base).name
        self._tokenizer = load_tokenizer(ref)
        self._model = load_model(ref, device=place, dtype=chosen)
        self._batch_size = batch_size
        self._window: int | None = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        pad = self._tokenizer.pad_token_id
        self._decoder = Decoder(self._model, end_ids(self._model, self._tokenizer), 0 if pad is None else pad)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cowest-local")
        self._stop = threading.Event()
        self._waiting: list[_Request] = []
        self._worker: asyncio.Task[None] | None = None
        self._encode = lru_cache(maxsize=4096)(self._encode_uncached)  # the K samples of a query share a prompt

    @property
    def name(self) -> str:
        """The name given, or the last part of the model's path."""
        return self._name

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Answer a conversation.

        Raises ModelCallError of kind ``too_long``, ``empty``, ``chat_template``, ``closed``, ``out_of_memory`` or
        ``local_failure``.
        """
        return await self._queued(messages, sampling).future

    def room(self, messages: Sequence[Message]) -> int | None:
        """See RoomyChatModel."""
        return None if self._window is None else self._window - len(self._encode(tuple(messages)))

    async def stream(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[str | Completion, None]:
        """See StreamingChatModel. Half a character waits for its other half."""
        news: asyncio.Queue[list[int] | None] = asyncio.Queue()  # as long as the text at most
        request = self._queued(messages, sampling, news.put_nowait)
        request.future.add_done_callback(lambda _: news.put_nowait(None))
        said = ""
        try:
            while (tokens := await news.get()) is not None:
                text = request.opening + self._text(tokens)
                if text.strip() and len(text) > len(said) and not text.endswith("\ufffd") and text.startswith(said):
                    yield text[len(said) :]
                    said = text
            done = await request.future
        finally:
            request.future.cancel()  # of a reader that leaves: its row leaves the batch
        if not done.text.startswith(said):  # decoded anew after memory ran out, and with other random numbers
            raise ModelCallError("local_failure", f"{self._name}: the text was lost on the way")
        if done.text != said:
            yield done.text[len(said) :]
        yield done

    def _text(self, tokens: list[int]) -> str:
        return answer_text(self._tokenizer, tokens)

    def _queued(
        self, messages: Sequence[Message], sampling: Sampling, hear: Callable[[list[int]], None] | None = None
    ) -> _Request:
        """Put a request into the queue. Raises ModelCallError where it can never be answered."""
        if self._stop.is_set():
            raise ModelCallError("closed", f"{self._name}: the model has been closed")
        prompt = self._encode(tuple(messages))
        if self._window is not None and len(prompt) + sampling.max_tokens > self._window:
            raise ModelCallError(
                "too_long",
                f"{self._name}: a prompt of {len(prompt)} tokens and max_tokens {sampling.max_tokens} do not fit "
                f"the model's window of {self._window} tokens",
            )
        loop = asyncio.get_running_loop()
        row = Row(prompt, sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed, sampling.logprobs)
        opening = opens_thinking(cast(str, self._tokenizer.decode(list(prompt[-_OPENING_TOKENS:]))))
        request = _Request(row, opening, loop.create_future(), loop, hear)
        self._waiting.append(request)
        if self._worker is None or self._worker.done() or self._worker.get_loop() is not loop:
            self._worker = loop.create_task(self._work(loop))
        return request

    async def aclose(self) -> None:
        """Stop decoding, fail what waits, and release the thread. A closed model answers no more."""
        self._stop.set()
        worker, self._worker = self._worker, None
        if worker is not None and worker.get_loop() is asyncio.get_running_loop():
            await asyncio.gather(worker, return_exceptions=True)
        self._executor.shutdown(wait=True)

    def _encode_uncached(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        try:
            return tuple(prompt_ids(self._tokenizer, messages))
        except ModelCallError as error:
            raise ModelCallError(error.kind, f"{self._name}: {error}") from None

    async def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Decode what waits, until nothing does. One task per event loop; it ends when the queue is empty."""
        await asyncio.sleep(0)  # let the callers that start together queue up
        while self._waiting:
            taken, self._waiting = self._waiting, []
            taken = [r for r in taken if r.loop is loop]  # others belong to a loop that is gone
            taken.sort(key=lambda r: (len(r.row.prompt), r.row.prompt))
            for start in range(0, len(taken), self._batch_size):
                # Cancelled callers are skipped; those still ahead are looked at again before their own batch.
                batch = [r for r in taken[start : start + self._batch_size] if not r.future.done()]
                if batch:
                    await self._run(batch, loop)

    async def _run(self, batch: list[_Request], loop: asyncio.AbstractEventLoop) -> None:
        try:
            if self._stop.is_set():
                raise Interrupted
            decoded = await loop.run_in_executor(self._executor, self._decode, batch)
        except Interrupted:
            _fail(batch, ModelCallError("closed", f"{self._name}: the model was closed while it was decoding"))
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                _fail(batch, ModelCallError("out_of_memory", f"{self._name}: one prompt alone does not fit the memory"))
                return
            half = (len(batch) + 1) // 2
            await self._run(batch[:half], loop)
            await self._run(batch[half:], loop)
        except asyncio.CancelledError:
            for request in batch:
                request.future.cancel()
            raise
        except Exception as error:  # whatever happens in the thread, every caller must get an answer
            _fail(batch, ModelCallError("local_failure", f"{self._name}: {type(error).__name__}: {error}"))
        else:
            for request, (row, text, logprobs) in zip(batch, decoded, strict=True):
                self._settle(request, row, text, logprobs)

    def _decode(self, batch: list[_Request]) -> list[tuple[Decoded, str, tuple[TokenLogprob, ...] | None]]:
        # A cancelled caller's row leaves the batch; reading a future's state from this thread is safe.
        decoded = self._decoder.decode(
            [r.row for r in batch], self._stop, lambda i: batch[i].future.done(), _reporter(batch)
        )
        texts = [self._text(d.tokens) for d in decoded]
        logprobs = [None if d.scores is None else token_logprobs(self._tokenizer, d.tokens, d.scores) for d in decoded]
        return list(zip(decoded, texts, logprobs, strict=True))

    def _settle(self, request: _Request, row: Decoded, text: str, logprobs: tuple[TokenLogprob, ...] | None) -> None:
        if request.future.done():
            return
        if not text.strip():
            request.future.set_exception(ModelCallError("empty", f"{self._name}: the model wrote nothing"))
            return
        usage = Usage(calls=1, input_tokens=len(request.row.prompt), output_tokens=row.generated)
        request.future.set_result(
            Completion(
                text=request.opening + text,
                finish_reason="stop" if row.stopped else "length",
                usage=usage,
                latency_s=time.perf_counter() - request.started,
                logprobs=logprobs,
            )
        )


def _reporter(batch: Sequence[_Request]) -> Callable[[Callable[[int], list[int]]], None] | None:
    """Tells those who listen, from the decoding thread; None where nobody does."""
    listening = [(i, request.hear) for i, request in enumerate(batch) if request.hear is not None]
    if not listening:
        return None
    loop = batch[0].loop

    def said(spoken: Callable[[int], list[int]]) -> None:
        news = [(hear, spoken(i)) for i, hear in listening if not batch[i].future.done()]
        loop.call_soon_threadsafe(_tell, news)

    return said


def _tell(news: Sequence[tuple[Callable[[list[int]], None], list[int]]]) -> None:
    for hear, tokens in news:
        hear(tokens)


def _fail(batch: Sequence[_Request], error: ModelCallError) -> None:
    for request in batch:
        if not request.future.done():
            request.future.set_exception(ModelCallError(error.kind, str(error)))


def _dtype(name: str) -> torch.dtype | None:
    if name == "auto":
        return None
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no torch dtype; use auto, float32, bfloat16 or float16")
    return dtype


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What ends a text: the generation config's ids (one or several), the tokenizer's, and the chat template's."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = list(configured) if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(i for i in (*ids, tokenizer.eos_token_id, turn_end(tokenizer)) if i is not None))
