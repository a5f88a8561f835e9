"""Prompts that share a beginning read it once, rows join a running batch, and neither changes what is said."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from threading import Event
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from cowest.models import readers
from cowest.models.batching import Decoded, Decoder, Interrupted, Request
from cowest.models.prefixes import WORTH, Prefixes, together, waves
from cowest.models.readers import PlainReader, SlotReader, reader_for
from cowest.models.sampler import Row
from cowest.models.slots import Piece, Slots

pytestmark = pytest.mark.slow
WORDS = 97
SIZE: Any = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZE, num_hidden_layers=2),
    "qwen2": Qwen2Config(**SIZE, num_hidden_layers=2),
    "gemma3": Gemma3TextConfig(**SIZE, num_hidden_layers=7, head_dim=8, sliding_window=20),
    "mistral": MistralConfig(**SIZE, num_hidden_layers=2, sliding_window=20),
    "gpt2": GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=256),
}


def random_model(config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.normal_(std=0.3)
    return model


def family_prompts() -> list[tuple[int, ...]]:
    """Three queries of three requests: an instruction for all, a context for each query, an ending of its own."""
    random = Random(0)

    def words(count: int) -> list[int]:
        return [random.randrange(WORDS) for _ in range(count)]

    instruction = words(40)
    contexts = [instruction + words(40) for _ in range(3)]
    prompts = [tuple(context + words(random.randrange(1, 30))) for context in contexts for _ in range(3)]
    return [*prompts, prompts[0], tuple(instruction), prompts[0][:60], (5, 6)]


def own_logits(model: Any, prompt: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([prompt]), use_cache=False).logits[0, -1]
    return logits


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_what_is_shared_is_read_once_and_logits_are_the_models_own(name: str) -> None:
    model, prompts = random_model(CONFIGS[name]), family_prompts()
    reader = reader_for(model, 0)
    assert isinstance(reader, SlotReader)
    rows = [Row(prompt, 8) for prompt in prompts]
    assert reader.room(rows) == len(rows)
    logits = reader.admit(rows, lambda: None)
    whole = sum(map(len, prompts))
    assert reader.read_tokens < 0.4 * whole
    for prompt, found in zip(prompts, logits, strict=True):
        torch.testing.assert_close(found, own_logits(model, prompt), atol=1e-4, rtol=1e-4)
    for _ in range(2):  # and what is read after it, across the edge of a sliding window
        chosen = logits.argmax(-1)
        prompts = [(*prompt, int(token)) for prompt, token in zip(prompts, chosen, strict=True)]
        logits = reader.step(chosen)
        for prompt, found in zip(prompts, logits, strict=True):
            torch.testing.assert_close(found, own_logits(model, prompt), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_reading_stops_between_two_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(readers.TOKENS, "cpu", 80)
    model, prompts, stop = random_model(CONFIGS[name]), family_prompts(), Event()
    slots = Slots(model)
    reader, read = SlotReader(model, slots), slots.read

    def last_pass(pieces: Sequence[Piece]) -> torch.Tensor:
        stop.set()
        return read(pieces)

    monkeypatch.setattr(slots, "read", last_pass)
    with pytest.raises(Interrupted):
        Decoder(model, [], 0, reader=reader).decode([Row(prompt, 3) for prompt in prompts], stop)
    assert 0 < reader.read_tokens <= 80


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_request_that_comes_later_finds_the_prefix(name: str) -> None:
    model, prompts = random_model(CONFIGS[name]), family_prompts()
    reader = SlotReader(model, Slots(model))
    decoder = Decoder(model, [], 0, reader=reader)
    decoder.decode([Row(prompts[0], 3)])
    before = reader.read_tokens
    [again, other] = decoder.decode([Row(prompts[1], 12), Row(prompts[3], 12)])
    assert before == len(prompts[0])
    assert reader.read_tokens - before == len(prompts[1]) - 80 + len(prompts[3]) - 40
    alone = Decoder(model, [], 0, reader=SlotReader(model, Slots(model), prefix_bytes=0))
    assert [again, other] == alone.decode([Row(prompts[1], 12), Row(prompts[3], 12)])


def test_waiting_rows_join_as_others_finish_and_say_what_they_say_alone() -> None:
    model, random = random_model(CONFIGS["llama"]), Random(1)
    rows = [
        Row(
            prompt,
            random.randrange(1, 25),
            temperature=(i % 3) / 2,
            top_p=0.9 if i % 2 else 1.0,
            seed=i,
            logprobs=i % 2 or None,
        )
        for i, prompt in enumerate(family_prompts() * 3)
    ]
    decoder = Decoder(model, [3], 0, batch_size=8)
    widths, step = list[int](), decoder._reader.step
    decoder._reader.step = lambda tokens: widths.append(len(tokens)) or step(tokens)  # type: ignore[method-assign, func-returns-value]
    together = decoder.decode(rows)
    assert max(widths) == 8
    took = [done.generated for done in together]
    assert len(widths) < 0.85 * sum(
        max(took[i : i + 8]) for i in range(0, len(took), 8)
    )  # fixed batches wait for their longest
    for row, got in zip(rows, together, strict=True):
        [alone] = Decoder(model, [3], 0).decode([row])
        assert (got.tokens, got.stopped, got.generated) == (alone.tokens, alone.stopped, alone.generated)
        if row.logprobs is not None:
            assert got.scores is not None and alone.scores is not None
            assert [s.logprob for s in got.scores] == pytest.approx([s.logprob for s in alone.scores], abs=1e-4)


def test_a_request_that_comes_while_others_are_under_way_joins_them() -> None:
    decoder = Decoder(random_model(CONFIGS["llama"]), [], 0)
    found = dict[str, Decoded]()
    order = list[str]()

    def request(name: str, prompt: tuple[int, ...], tokens: int, hear: Any = None) -> Request:
        return Request(Row(prompt, tokens), partial(done, name), failed, hear=hear)

    def done(name: str, decoded: Decoded) -> None:
        order.append(name)
        found[name] = decoded

    def failed(error: Exception) -> None:
        pytest.fail(repr(error))

    def heard(tokens: list[int]) -> None:
        if len(tokens) == 5:
            waiting.append(request("late", (1, 2, 3), 4))

    waiting = deque([request("first", (9, 8, 7), 40, heard)])
    decoder.run(waiting, Event())
    assert order == ["late", "first"]
    assert [found["late"]] == decoder.decode([Row((1, 2, 3), 4)])
    assert [found["first"]] == decoder.decode([Row((9, 8, 7), 40)])


def asked_apart() -> list[tuple[int, ...]]:
    """The first request of each of six queries, then the others of each, as they come from who asks in that order."""
    random = Random(3)
    queries = [tuple(random.randrange(WORDS) for _ in range(60)) for _ in range(6)]
    return [(*query, k, k) for k in range(4) for query in queries]


def test_waiting_requests_that_share_join_together_and_the_oldest_always_does() -> None:
    model, rows = random_model(CONFIGS["llama"]), [Row(prompt, 3) for prompt in asked_apart()]
    reader = SlotReader(model, Slots(model), prefix_bytes=0)
    joined, admit = list[list[int]](), reader.admit

    def noted(some: list[Row], between: Callable[[], None]) -> torch.Tensor:
        joined.append([rows.index(row) for row in some])
        return admit(some, between)

    reader.admit = noted  # type: ignore[method-assign, assignment]
    found = Decoder(model, [], 0, batch_size=8, reader=reader).decode(rows)
    assert joined == [[q + k * 6 for q in pair for k in range(4)] for pair in ((0, 1), (2, 3), (4, 5))]
    assert reader.read_tokens == 6 * 60 + 24 * 2, "each query once; one after the other it would be 24 times"
    for row, got in zip(rows, found, strict=True):
        assert [got] == Decoder(model, [], 0).decode([row])


def test_a_request_that_shares_nothing_is_overtaken_by_no_more_than_those_in_front_bring_along() -> None:
    model, random = random_model(CONFIGS["llama"]), Random(4)
    query = tuple(random.randrange(WORDS) for _ in range(50))
    prompts = [(*query, n, n) for n in range(40)]
    prompts.insert(1, (7, 8, 9))
    done = list[int]()
    waiting = deque(
        Request(Row(prompt, 2), lambda _, i=i: done.append(i), lambda error: pytest.fail(repr(error)))  # type: ignore[misc]
        for i, prompt in enumerate(prompts)
    )
    Decoder(model, [], 0, batch_size=4).run(waiting, Event())
    assert done.index(1) < 12, "the second of all: the first brings along what is looked at, and then it is the oldest"
    assert sorted(done) == list(range(41))


def test_memory_for_few_rows_takes_those_that_share_and_the_others_keep_their_places() -> None:
    model, prompts = random_model(CONFIGS["llama"]), asked_apart()
    reader = SlotReader(model, Slots(model), prefix_bytes=0)
    room, joined, admit = reader.room, list[list[int]](), reader.admit
    reader.room = lambda rows: min(room(rows), 5 - len(reader._longest))  # type: ignore[method-assign]

    def noted(some: list[Row], between: Callable[[], None]) -> torch.Tensor:
        joined.append([prompts.index(row.prompt) for row in some])
        return admit(some, between)

    reader.admit = noted  # type: ignore[method-assign, assignment]
    Decoder(model, [], 0, batch_size=24, reader=reader).decode([Row(prompt, 2) for prompt in prompts])
    assert joined == [[0, 6, 12, 18, 1], [2, 8, 14, 20, 3], [4, 10, 16, 22, 5], [7, 13, 19, 9, 15], [11, 17, 23, 21]]


def test_the_order_is_by_age_where_prompts_share_only_what_all_do() -> None:
    random = Random(5)
    head = tuple(random.randrange(WORDS) for _ in range(100))
    assert together([(*head, *(random.randrange(WORDS) for _ in range(9))) for _ in range(50)]) == list(range(50))
    assert together([]) == [] and together([head] * 3) == [0, 1, 2]
    nested = [(*head, 1), (5, 6), head[:60], (*head, 2), (*head[:60], 3, 3), head[:60]]
    assert together(nested) == [0, 3, 2, 4, 5, 1], "the closest first"
    many = [(*random.choice([head, head[:50], (1,)]), n, random.randrange(3)) for n in range(80)]
    assert sorted(together(many)) == list(range(80)) and together(many)[0] == 0


def test_memory_that_runs_out_halves_the_rows_and_loses_no_request() -> None:
    decoder = Decoder(random_model(CONFIGS["llama"]), [], 0)
    rows = [Row(prompt, 6, temperature=1.0, seed=i) for i, prompt in enumerate(family_prompts())]
    whole, step = decoder.decode(rows), decoder._reader.step
    tried = list[int]()

    def small(tokens: torch.Tensor) -> torch.Tensor:
        tried.append(len(tokens))
        if len(tokens) > 4:
            raise torch.OutOfMemoryError("no")
        return step(tokens)

    decoder._reader.step = small  # type: ignore[method-assign]
    assert decoder.decode(rows) == whole
    assert tried[:2] == [13, 7] and max(tried[2:]) == 4


def test_a_model_of_another_attention_is_read_in_its_own_way() -> None:
    model = random_model(BloomConfig(vocab_size=WORDS, hidden_size=32, n_layer=2, n_head=4))
    assert isinstance(reader_for(model, 0), PlainReader)
    rows = [Row(prompt, limit) for prompt, limit in zip(family_prompts(), (1, 9, 4) * 5, strict=False)]
    decoder = Decoder(model, [], 0, batch_size=6)
    for row, got in zip(rows, decoder.decode(rows), strict=True):
        text = list(row.prompt)
        for token in got.tokens:
            assert int(own_logits(model, tuple(text)).argmax()) == token
            text.append(token)
        assert got.generated == row.max_tokens


def test_a_model_whose_layers_hide_their_window_is_not_trusted() -> None:
    model = random_model(CONFIGS["gemma3"])
    assert Slots(model).fits()
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    assert not Slots(model).fits()


def test_every_token_is_read_exactly_once_for_each_prompt() -> None:
    random = Random(2)
    heads = [tuple(random.randrange(5) for _ in range(n)) for n in (0, 10, 40, 90)]
    prompts = list(
        {random.choice(heads) + tuple(random.randrange(3) for _ in range(random.randrange(1, 60))) for _ in range(60)}
    )
    have = [0] * len(prompts)
    for wave in waves(prompts):
        for reading in wave:
            assert have[reading.owner] == reading.start < reading.end
            for other in reading.others:
                assert have[other] == reading.start
                assert prompts[other][: reading.end] == prompts[reading.owner][: reading.end]
                assert reading.end - reading.start >= WORTH
        for reading in wave:
            for i in (reading.owner, *reading.others):
                have[i] = reading.end
    assert have == [len(prompt) for prompt in prompts]


def test_one_prompt_makes_room_for_the_newest_and_hashes_alone_are_not_believed() -> None:
    states = torch.zeros(1, 2, 1, 64, 4)
    kept = Prefixes(2 * states.numel() * 4)
    a, b, c = (tuple(range(n, n + 64)) for n in (0, 100, 200))
    kept.keep(a, states)
    kept.keep(b, states)
    assert kept.find((*a[:50], 7, 7), 52) is not None
    kept.keep(c, states)
    [other] = [tokens for tokens in (a, b) if kept.find(tokens, 64) is not None]
    for tokens in (other, c):
        found = kept.find(tokens, 63)
        assert found is not None and found[0] == 63
    kept._by_hash.update(
        dict.fromkeys(kept._by_hash, kept._by_hash[next(iter(kept._by_hash))])
    )  # every hash now leads to one prompt
    hits = [tokens for tokens in (other, c) if kept.find(tokens, 64) is not None]
    assert len(hits) == 1


def test_queries_that_are_a_few_more_than_fit_are_mostly_found_when_they_come_round_again() -> None:
    states = torch.zeros(1, 2, 1, 64, 4)
    kept, hits = Prefixes(16 * states.numel() * 4), 0
    queries = [tuple(range(n * 100, n * 100 + 64)) for n in range(20)]
    for _ in range(21):
        for query in queries:
            if kept.find(query, 63) is not None:
                hits += 1
            else:
                kept.keep(query, states)
    assert len(kept) == 16
    assert hits > 0.5 * 20 * 20, "to forget the longest unused would find none"
