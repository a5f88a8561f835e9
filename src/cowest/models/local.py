"""A causal language model on this machine, through transformers, with a PEFT adapter where one was trained.

Concurrent callers are batched: requests queue, and one thread decodes up to ``batch_size`` of them at a time, letting those that
wait join as others finish (see ``models/batching.py``). Weights come from safetensors files only, and no code from a checkpoint
is ever run.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import warnings
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cowest.errors import MissingExtraError, ModelCallError, ModelNotFoundError
from cowest.models.agreement import FEWEST, decide, decided, narrow, narrowed, texts_of
from cowest.models.batching import Decoded, Decoder, Interrupted, Request
from cowest.models.chat import ensure_chat_template, prompt_ids, token_ids, turn_end
from cowest.models.given import split_given
from cowest.models.held import Grammar, grammar_of, masks_for
from cowest.models.hub import hub_switch
from cowest.models.packed import pack
from cowest.models.precision import native_bfloat16
from cowest.models.sampler import Row
from cowest.models.thinking import closing_of, opens_thinking
from cowest.models.token_text import answer_text, token_logprobs
from cowest.run.progress import no_hub_bars
from cowest.types import Completion, Given, Held, Message, ModelRef, Sampling, TokenLogprob, Usage

if TYPE_CHECKING:
    from llguidance import LLTokenizer

ADAPTER_CONFIG = "adapter_config.json"
logger = logging.getLogger(__name__)
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
        with warnings.catch_warnings():  # PEFT reads what transformers has renamed
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
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
        hint = (
            f" The hub is switched off ({off}), so only models in the local cache or in a folder can be used."
            if (off := hub_switch())
            else " Check the name, the network, and for a gated model that you are logged in (`hf auth login`)."
        )
    elif "safetensors" in reason:
        hint = " Only safetensors weights are loaded; convert the checkpoint with save_pretrained."
    return ModelNotFoundError(f"{name}: the {what} cannot be loaded: {reason}{hint}")


class LocalChatModel:
    """Implements :class:`cowest.protocols.ChatModel` for a checkpoint on this machine.

    Args:
        ref: The base (a folder or a hub name) and, where one was trained, its adapter.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``auto`` or the name of a torch dtype. ``auto`` is the checkpoint's own on an accelerator; on a CPU bfloat16 where
            the processor has it and it agrees (:mod:`cowest.models.agreement`), else float32.
        batch_size: Most rows decoded together.
        name: How the model is called in results; unset: the last part of its path.

    A request with a seed gives the same text in any batch (up to rounding, see ``models/batching.py``). Raises
    ModelNotFoundError where the path or name leads to no model.
    """

    def __init__(
        self, ref: ModelRef, *, device: str = "auto", dtype: str = "auto", batch_size: int = 64, name: str | None = None
    ) -> None:
        place = resolve_device(device)
        self._name = name or Path(ref.adapter or ref.base).name
        self._tokenizer = load_tokenizer(ref)
        self._model = _load(ref, place, dtype, self._tokenizer)
        pack(self._model)
        self._window: int | None = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        pad = self._tokenizer.pad_token_id
        self._ends = end_ids(self._model, self._tokenizer)
        self._decoder = Decoder(self._model, self._ends, 0 if pad is None else pad, batch_size)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cowest-local")
        self._stop = threading.Event()
        self._waiting: deque[Request] = deque()
        self._asked: dict[asyncio.Future[Completion], asyncio.AbstractEventLoop] = {}
        self._worker: asyncio.Task[None] | None = None
        self._masks: LLTokenizer | None = None
        self._grammar = lru_cache(maxsize=64)(
            self._grammar_uncached
        )  # checked, then asked with; and clients repeat theirs
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
        return await self._queued(messages, sampling)[0]

    def room(self, messages: Sequence[Message]) -> int | None:
        """See RoomyChatModel."""
        return None if self._window is None else self._window - len(self._encode(tuple(messages)))

    async def stream(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[str | Completion, None]:
        """See StreamingChatModel. Half a character waits for its other half."""
        news: asyncio.Queue[list[int] | None] = asyncio.Queue()  # as long as the text at most
        future, opening = self._queued(messages, sampling, news.put_nowait)
        future.add_done_callback(lambda _: news.put_nowait(None))
        said = ""
        try:
            while (tokens := await news.get()) is not None:
                text = opening + self._text(tokens)
                if text.strip() and len(text) > len(said) and not text.endswith("\ufffd") and text.startswith(said):
                    yield text[len(said) :]
                    said = text
            done = await future
        finally:
            future.cancel()  # of a reader that leaves: its row leaves the batch
        if not done.text.startswith(said):  # decoded anew after memory ran out, and with other random numbers
            raise ModelCallError("local_failure", f"{self._name}: the text was lost on the way")
        if done.text != said:
            yield done.text[len(said) :]
        yield done

    def _text(self, tokens: list[int]) -> str:
        return answer_text(self._tokenizer, tokens)

    def _queued(
        self, messages: Sequence[Message], sampling: Sampling, hear: Callable[[list[int]], None] | None = None
    ) -> tuple[asyncio.Future[Completion], str]:
        """Put a request into the queue. What will be answered, and what the chat template has written of it.

        That is the mark that opens thinking, or nothing. Raises ModelCallError where it can never be answered.
        """
        if self._stop.is_set():
            raise ModelCallError("closed", f"{self._name}: the model has been closed")
        row = self._row(messages, sampling)
        prompt = row.prompt
        if self._window is not None and len(prompt) + row.max_tokens > self._window:
            raise ModelCallError(
                "too_long",
                f"{self._name}: a prompt of {len(prompt)} tokens and max_tokens {row.max_tokens} do not fit "
                f"the model's window of {self._window} tokens",
            )
        loop = asyncio.get_running_loop()
        opening = "" if row.given else opens_thinking(self._ending(prompt))
        future: asyncio.Future[Completion] = loop.create_future()
        self._waiting.append(self._request(row, opening, future, hear))
        self._asked[future] = loop
        future.add_done_callback(lambda done: self._asked.pop(done, None))
        if self._worker is None or self._worker.done() or self._worker.get_loop() is not loop:
            self._worker = loop.create_task(self._work(loop))
        return future, opening

    def _row(self, messages: Sequence[Message], sampling: Sampling) -> Row:
        prompt = self._encode(tuple(messages))
        if not isinstance(sampling, Given):
            how, grammar = sampling, None
            if isinstance(how, Held):
                grammar = self._grammar(how.grammar)
                prompt = self._without_thinking(prompt)
            return Row(prompt, how.max_tokens, how.temperature, how.top_p, how.seed, how.logprobs, grammar=grammar)
        try:
            prompt, given = split_given(self._tokenizer, prompt, messages, sampling)
        except ModelCallError as error:
            raise ModelCallError(error.kind, f"{self._name}: {error}") from None
        return Row(prompt, len(given), logprobs=0, given=given)

    def can_hold(self, grammar: str) -> None:
        """See HoldingChatModel."""
        self._grammar(grammar)

    def _grammar_uncached(self, grammar: str) -> Grammar:
        if self._masks is None:
            self._masks = masks_for(self._tokenizer, self._model.config.get_text_config().vocab_size, self._ends)
        return grammar_of(self._masks, grammar)

    def _without_thinking(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        """The prompt with the thinking closed that its template opens: what a grammar holds is the answer, not the thinking."""
        opening = opens_thinking(self._ending(prompt))
        closing = f"\n{closing_of(opening)}\n\n" if opening else ""
        return (*prompt, *token_ids(self._tokenizer, closing)) if closing else prompt

    def _ending(self, prompt: tuple[int, ...]) -> str:
        return cast(str, self._tokenizer.decode(list(prompt[-_OPENING_TOKENS:])))

    def _request(
        self, row: Row, opening: str, future: asyncio.Future[Completion], hear: Callable[[list[int]], None] | None
    ) -> Request:
        """What the decoding thread is given: it answers through the caller's event loop."""
        loop, started = future.get_loop(), time.perf_counter()

        def tell(call: Callable[..., None], *told: object) -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(call, *told)

        def done(decoded: Decoded) -> None:
            text = self._text(decoded.tokens)
            scored = decoded.scores
            logprobs = None if scored is None else token_logprobs(self._tokenizer, decoded.tokens, scored)
            tell(_settle, future, self._completion(row, opening, decoded, text, logprobs, started))

        return Request(
            row,
            done=done,
            failed=lambda error: tell(_settle, future, self._failure(error)),
            gone=lambda: future.done() or loop.is_closed(),  # a future's state may be read from any thread
            hear=None if hear is None else lambda tokens: tell(hear, tokens),
        )

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
        try:
            while self._waiting:
                await loop.run_in_executor(self._executor, self._decoder.run, self._waiting, self._stop)
        except asyncio.CancelledError:
            for future, of in list(self._asked.items()):
                if of is loop:
                    future.cancel()  # and the decoding thread drops its row
            raise

    def _completion(
        self,
        row: Row,
        opening: str,
        decoded: Decoded,
        text: str,
        logprobs: tuple[TokenLogprob, ...] | None,
        started: float,
    ) -> Completion | ModelCallError:
        if row.grammar is not None and decoded.stopped and not row.grammar.accepts(decoded.tokens):
            return ModelCallError("not_held", f"{self._name}: the grammar of this schema is too much for llguidance")
        if not text.strip():
            return ModelCallError("empty", f"{self._name}: the model wrote nothing")
        return Completion(
            text=opening + text,
            finish_reason="stop" if decoded.stopped or row.given else "length",
            usage=Usage(calls=1, input_tokens=len(row.prompt), output_tokens=decoded.generated),
            latency_s=time.perf_counter() - started,
            logprobs=logprobs,
        )

    def _failure(self, error: Exception) -> ModelCallError:
        if isinstance(error, Interrupted):
            return ModelCallError("closed", f"{self._name}: the model was closed while it was decoding")
        if isinstance(error, torch.OutOfMemoryError):
            return ModelCallError("out_of_memory", f"{self._name}: one prompt alone does not fit the memory")
        return ModelCallError("local_failure", f"{self._name}: {type(error).__name__}: {error}")


def _settle(future: asyncio.Future[Completion], outcome: Completion | ModelCallError) -> None:
    if future.done():
        return
    if isinstance(outcome, Completion):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)


def _load(ref: ModelRef, device: torch.device, dtype: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model in the dtype that is asked for; ``auto`` on a CPU looks whether bfloat16 will do, and says so once."""
    if dtype != "auto" or device.type != "cpu":
        return load_model(ref, device=device, dtype=_dtype(dtype))
    stored = None if ref.adapter is None else torch.float32  # an adapter is merged in float32, then narrowed
    model = load_model(ref, device=device, dtype=stored if native_bfloat16(device) else torch.float32)
    if not native_bfloat16(device) or model.num_parameters() < FEWEST:
        return model if model.dtype == torch.float32 else load_model(ref, device=device, dtype=torch.float32)
    found = decided(ref)
    if found is None:
        found = narrowed(model, texts_of(tokenizer))
        decide(ref, found)
    _say(ref.base, found.enough, str(found))
    if found.enough:
        narrow(model)
        return model
    del model
    return load_model(ref, device=device, dtype=torch.float32)


_said = set[tuple[str, bool]]()


def _say(base: str, enough: bool, found: str) -> None:
    """Once a process for a base model; for an adapter of it where that comes out otherwise."""
    if (base, enough) in _said:
        return
    _said.add((base, enough))
    outcome = "bfloat16, which agrees with float32" if enough else "float32, as bfloat16 does not agree with it"
    logger.warning("%s: computed in %s (%s)", Path(base).name, outcome, found)


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
