"""The model calls that a run of a recipe still has to make: how many, with which prompts, and how many are answered already.

Where the requests are known (all prompts without a draft; all others once the drafts are there), they are counted one by one,
and looked up in the ledger. Else their number lies between bounds: equal requests share one call, so the low figure is that of
drafts which are all equal, the high one that of drafts which all differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from cowest.assembly.context import Context
from cowest.assembly.sources import Source
from cowest.costs.comparisons import comparable, comparison_prompt, to_compare
from cowest.costs.contrast import until_contrast
from cowest.costs.turns import choosing_work, less_the_attempts, opening_work, turned
from cowest.costs.work import ZERO, Range, Work, bought, exactly
from cowest.ledger.ledger import call_of
from cowest.pipeline import stages_now
from cowest.run.freshness import Verdict, review
from cowest.scoring.judge import JUDGED, judge_request
from cowest.stages import asks
from cowest.stages.choosing import scores_checkpoints
from cowest.stages.evaluate import compared_name, test_queries
from cowest.stages.learn import training_queries
from cowest.stages.loop import begun, rounds_of, selection
from cowest.stages.rounds import Round
from cowest.stages.verdicts import Pair
from cowest.systems.registry import STRONG, evaluated
from cowest.training.objectives import as_online
from cowest.types import Draft, Example, Message, Prediction, Refinement, Request, Sampling

READ_TOKENS = 16  # of a reference, which is read beside an answer: most are a few words


def workload(context: Context, paid: frozenset[str]) -> Iterator[Work]:
    """Every kind of call to the weak model, the strong one and the judge. ``paid``: the ledger's requests."""
    yield from _Workload(context, paid).all()


def current_stages(context: Context) -> dict[str, Verdict]:
    """The stages whose records in the run directory a run would use again, as a whole or in part."""
    found = review(context.run, stages_now(context), lambda stage: stage.depends(context))
    return {name: verdict for name, verdict in found.items() if verdict.kept}


class _Workload:
    """The calls of one domain."""

    def __init__(self, context: Context, paid: frozenset[str]) -> None:
        self._plain, self._context, self._c, self._frames = context, context, context.config, context.frames
        self._shares = context.config.cache != "off"  # whether equal requests share a call
        self._paid = paid if context.config.cache == "read" else frozenset[str]()
        self._current = current_stages(context)
        self._train, self._test = training_queries(context), test_queries(context)
        self._weak, self._strong = context.weak, context.strong
        self._served = self._weak.paid
        self._trained = self._weak.trainable and self._c.align.objective != "off"
        self._begun = begun(context)
        self._round = self._begun[0]
        self._to_ask_alone: Sequence[Example] = ()
        self._alone = set[str]()  # the queries whose answers without a draft an earlier round has

    def all(self) -> Iterator[Work]:
        for round_ in self._to_come():
            self._round, opened = round_, self._done(round_.stage("openings"))
            self._context = turned(self._plain, round_, opened)
            self._train, self._frames = training_queries(self._context, round_), self._context.frames
            for work in self._of_round():
                yield work if round_.number == 1 else self._later(work)
        self._context, self._frames = self._plain, self._plain.frames
        yield from self._evaluate()

    def _to_come(self) -> Sequence[Round]:
        """The rounds that have begun, and those that may follow."""
        last = self._begun[-1]
        over = self._done(last.stage("align"))  # and no other has begun: the loop has ended
        return self._begun if over else rounds_of(self._c)

    def _later(self, work: Work) -> Work:
        """Of a round that may follow, or may not."""
        number = self._round.number
        calls = work.calls if number <= len(self._begun) else work.calls.model_copy(update={"low": 0.0})
        return replace(work, calls_for=f"{work.calls_for}, round {number}", calls=calls, number=number)

    def _of_round(self) -> Iterator[Work]:
        openings = self._round.stage("openings")
        begun, done = openings in self._current, self._done(openings)
        yield from opening_work(self._plain, self._round, begun, done, self._ask)
        if self._trained and as_online(self._context.objective) is not None:
            yield from self._online()
            return
        yield self._sample() if self._served else self._sample_here()
        asked = self._context.signal.asks
        solo, refine = less_the_attempts(self._plain, self._solo(), done, self._shares), self._refine()
        solo = solo if "solo" in asked else replace(solo, calls=ZERO, already=0)
        refine = refine if "refine" in asked else replace(refine, calls=ZERO, already=0)
        if self._c.feedback.adaptive != "off" and "refine" in asked:
            done = self._done(self._round.stage("feedback"))
            solo, refine = until_contrast(self._context, self._train, self._drafts(), solo, refine, done)
        yield from (work for work, name in ((solo, "solo"), (refine, "refine")) if name in asked)
        if any(asks.readings_each(self._context, e) for e in self._train):
            yield self._read(refine)
        judge = self._context.models.sources.judge
        if judge is not None:
            yield self._judge(judge, solo, refine)
        yield from self._compare(solo, refine)
        if self._trained and scores_checkpoints(self._c, self._round):
            yield from self._choose()

    def _online(self) -> Iterator[Work]:
        """Of an alignment that draws drafts of its own. What other systems read of the stage ``sample`` is made beside it."""
        from cowest.costs.online import online_work  # it needs what is defined here

        if any(stage.name == "sample" for stage in stages_now(self._context)):
            yield self._sample_here()
        align = self._round.stage("align")
        yield from online_work(self._context, self._round, align in self._current, self._done(align), self._shares)
        if scores_checkpoints(self._c, self._round):
            yield from self._choose()

    def _sample(self) -> Work:
        weak, settings = self._weak, self._c.draft
        done = defaultdict[str, int](int)
        for d in self._drafts() or ():
            done[d.example_id] += 1
        ways = self._context.ways
        many = 1 if settings.ladder or len(ways) > 1 else weak.many  # each draft then has a request of its own
        low = high = already = again = 0
        for e in self._train:
            asked, series = [frames.draft(e) for _, frames in ways], asks.draft_series(self._context, self._round, e)
            drawn = [
                (series.together(settings.sampling), k)
                if many > 1
                else (asks.draft_sampling(self._context, self._round, e, k), 0)
                for k in range(settings.samples)
            ]
            keys = [
                call_of(weak.name, asked[i % len(ways)], sampling, weak.extra, None, k).key
                for i, (sampling, k) in enumerate(drawn)
            ]
            there = settings.samples if done[e.id] == settings.samples else len(self._paid.intersection(keys))
            missing = settings.samples - there
            low, high = low - (-missing // many), high + missing
            already += there
            again += 0 if done[e.id] == settings.samples else (settings.samples - 1) * settings.redraw
        return Work(
            "sample",
            "drafts",
            weak,
            Range(low=low, expected=low, high=high + again),
            already,
            self._train,
            self._draft_prompt,
            settings.sampling,
            samples=min(many, settings.samples),
            drafting=True,
        )

    def _sample_here(self) -> Work:
        """By a weak model that is not paid for: no two drafts share a call."""
        file = self._context.run.file(self._round.file("drafts.jsonl"), Draft)
        kept = file.load() if self._round.stage("sample") in self._current else []
        made = sum(d.error is None for d in kept)
        settings, n = self._c.draft, len(self._train)
        done = self._done(self._round.stage("sample"))
        calls, again = n * settings.samples, n * (settings.samples - 1) * settings.redraw
        left = ZERO if done else Range(low=calls, expected=calls, high=calls + again).less(made)
        return Work(
            "sample",
            "drafts",
            self._weak,
            left,
            made,
            self._train,
            self._draft_prompt,
            settings.sampling,
            drafting=True,
        )

    def _solo(self) -> Work:
        done = {r.example_id for r in self._answers("solo.jsonl")}
        left = [e for e in self._train if e.id not in done | self._alone]
        requests = [r for e in left for r in asks.solo_requests(self._context, e)]
        self._to_ask_alone = left if "solo" in self._context.signal.asks else []
        if self._round.number == 1 or (self._shares and self._strong.paid):
            self._alone |= {e.id for e in self._train}
        calls, already = self._ask(self._strong, requests)
        return Work(
            "feedback",
            "strong alone",
            self._strong,
            exactly(calls),
            already + len(done) * asks.calls_each(self._context),
            self._train,
            self._solo_prompt,
            self._c.feedback.sampling,
        )

    def _refine(self) -> Work:
        sampling, drafts, texts = self._c.feedback.sampling, self._drafts(), tuple[str, ...]()
        n, samples, each = len(self._train), self._c.draft.samples, asks.calls_each(self._context)
        if drafts is None:
            low = self._fewest(self._train)
            temperatures = self._c.draft.ladder or (self._c.draft.sampling.temperature,)
            greedy = not any(temperatures) and not self._served  # the drafts of a query in one format are all equal
            several = len(self._context.ways) if greedy else samples
            calls, already = Range(low=low, expected=n * several, high=n * samples), 0
            calls *= Range(low=each, expected=each, high=each)
        else:
            queries = {e.id: e for e in self._train}
            unique = {asks.draft_key(d): d for d in drafts}
            done = {r.draft_id for r in self._answers("refinements.jsonl")}
            finished = {asks.draft_key(d) for d in drafts if d.id in done}
            requests = [
                request
                for key, d in unique.items()
                if key not in finished
                for request in asks.refine_requests(self._context, queries[d.example_id], d)
            ]
            to_come, already = self._ask(self._strong, requests)
            calls, already, texts = (
                exactly(to_come),
                already + len(finished) * each,
                tuple(d.text or "" for d in drafts),
            )
        return Work(
            "feedback",
            "refine drafts",
            self._strong,
            calls,
            already,
            self._train,
            self._frames.refine,
            sampling,
            drafted=self._c.draft.sampling,
            drafts=texts,
        )

    def _read(self, refine: Work) -> Work:
        """Each reference in the place of an answer, where answers are open; an answer that names none has no such place."""
        each = [asks.readings_each(self._context, e) for e in self._train]
        alone = sum(asks.readings_each(self._context, e) for e in self._to_ask_alone)
        mean = sum(each) / len(each)
        drafted = refine.calls * Range(low=0, expected=mean, high=max(each))
        answers = (*self._answers("solo.jsonl"), *self._answers("refinements.jsonl"))
        return replace(
            refine,
            calls_for="read references",
            calls=drafted + Range(low=0, expected=alone, high=alone),
            already=sum(len(answer.likelihoods) for answer in answers),
            sampling=Sampling(max_tokens=READ_TOKENS),
        )

    def _judge(self, judge: Source, solo: Work, refine: Work) -> Work:
        """Every different text of a query is judged once, and once more where the judgement cannot be read."""
        n, drafts, known = len(self._train), self._drafts(), False
        texts: set[tuple[str, str | None]] = set()
        if drafts is not None and not solo.calls.high and not refine.calls.high:
            answers = (*self._answers("solo.jsonl"), *self._answers("refinements.jsonl"))
            known = len(answers) == n + len(drafts)
            texts = {(d.example_id, d.text) for d in drafts} | {(a.example_id, a.text) for a in answers}
            texts |= {(a.example_id, s.text) for a in answers for s in a.samples}
        already = 0
        if self._done(self._round.stage("feedback")):
            calls, already = ZERO, len(texts)
        elif known:
            queries = {e.id: e for e in self._train}
            to_come, already = self._ask(
                judge, [judge_request(self._context.for_strong(queries[i]), text or "") for i, text in texts]
            )
            calls = Range(low=to_come, expected=to_come, high=2 * to_come + already)
        else:
            several = self._c.draft.samples * n if drafts is None else len({(d.example_id, d.text) for d in drafts})
            most = several + asks.calls_each(self._context) * (n + several)
            calls = Range(low=self._fewest(self._train), expected=most, high=2 * most)
        return Work(
            "feedback",
            "judge",
            judge,
            calls,
            already,
            self._train,
            lambda e, draft: judge_request(self._context.for_strong(e), self._context.task.target(e)).messages,
            judge_request(self._train[0], "").sampling,
        )

    def _compare(self, solo: Work, refine: Work) -> Iterator[Work]:
        """Every answer with a draft that is not the one alone, by every judge that compares."""
        drafts, pairs = self._drafts(), None
        most = len(self._train) * self._c.draft.samples
        if drafts is not None:
            most = len({asks.draft_key(d) for d in drafts})
            refined = self._answers("refinements.jsonl")
            if not solo.calls.high and not refine.calls.high and len(refined) == len(drafts):
                pairs = comparable(self._context, self._train, self._answers("solo.jsonl"), refined)
        settled = self._done(self._round.stage("feedback"))
        yield from self._judges(
            "feedback", "compare", [self._round.file("compared")], self._train, most, pairs, settled
        )

    def _judges(
        self,
        stage: str,
        calls_for: str,
        names: Sequence[str],
        queries: Sequence[Example],
        most: int,
        pairs: Sequence[Pair] | None = None,
        settled: bool = False,
    ) -> Iterator[Work]:
        prompt = comparison_prompt(self._context)
        for found in to_compare(self._context, names, most, pairs, settled, self._ask):
            calls = Range(low=found.low, expected=found.expected, high=found.high)
            yield Work(stage, calls_for, found.judge, calls, found.already, queries, prompt, JUDGED, live=True)

    def _choose_judged(self, queries: Sequence[Example], settled: bool) -> Iterator[Work]:
        """Where checkpoints are compared with the strong model alone."""
        answer, folder = self._c.evaluate.answer, self._round.file("align/validation")
        requests = [Request(messages=self._frames.solo(e), sampling=answer) for e in queries]
        current = self._round.stage("align") in self._current
        there = self._predictions(f"{folder}/alone.jsonl") if current else set()
        rest = [r for r, e in zip(requests, queries, strict=True) if e.id not in there]
        calls, paid = (0, 0) if settled else self._ask(self._strong, rest)
        yield Work(
            "align",
            "choose: alone",
            self._strong,
            exactly(calls),
            paid + len(there),
            queries,
            self._solo_prompt,
            answer,
        )
        every = len(queries) * (self._c.align.checkpoints + 1)
        steps = self._context.path(folder).glob("compared-step-*-1.jsonl") if current else ()
        names = [f"{folder}/{path.name.removesuffix('-1.jsonl')}" for path in sorted(steps)]
        yield from self._judges("align", "compare", names, queries, every, None, settled)

    def _choose(self) -> Iterator[Work]:
        """Each checkpoint drafts; the strong model refines, unless drafts are worth what they score alone."""
        c = self._c
        queries = self._context.task.examples("validation")[: c.align.selection_queries]
        every = len(queries) * (c.align.checkpoints + 1)
        fewest = self._fewest(queries) if self._shares and c.draft.turn == "draft" else every
        calls, already = Range(low=fewest, expected=every, high=every), 0
        align = self._round.stage("align")
        if align in self._current:
            folder = self._round.file("align/validation")
            files = sorted(self._context.path(folder).glob("step-*.jsonl"))
            already = sum(len(self._predictions(f"{folder}/{file.name}")) for file in files)
            calls = ZERO if self._done(align) else calls.less(already)
        if c.draft.turn != "draft":
            if self._context.judged(queries):
                yield from self._choose_judged(queries, self._done(align))
            yield from choosing_work(self._plain, already, self._done(align), self._shares)
            return
        left = ZERO if self._done(align) else exactly(every).less(already)
        sampling = c.evaluate.draft
        yield Work("align", "drafts", self._weak, left, already, queries, self._draft_prompt, sampling, drafting=True)
        if self._context.signal.alone:
            return
        if self._context.judged(queries):
            yield from self._choose_judged(queries, self._done(align))
        yield Work(
            "align",
            "choose a checkpoint",
            self._strong,
            calls,
            already,
            queries,
            self._frames.refine,
            c.evaluate.answer,
            drafted=c.evaluate.draft,
        )

    def _evaluate(self) -> Iterator[Work]:
        c, test = self._c, self._test
        specs = [spec for spec in evaluated(c)[0] if spec.live]  # of the others :mod:`cowest.costs.systems` knows
        if self._done("align") and selection(self._context).skipped is not None:
            specs = [spec for spec in specs if spec.needs != "align"]  # there was nothing to learn from
        systems, plain = [spec.name for spec in specs], any(s.needs == "sft" and s.uses == "both" for s in specs)
        fresh = "evaluate" in self._current
        done = {name: self._predictions(f"predictions/{name}.jsonl") if fresh else set() for name in systems}
        drafting = [spec.name for spec in specs if spec.uses != "strong"]
        if drafting:
            yield self._evaluation_drafts(drafting, done)
        if self._context.judged(test):
            for name in (name for name in systems if name != STRONG.name):
                most, settled = len(test), self._done("evaluate")
                yield from self._judges("evaluate", f"compare {name}", [compared_name(name)], test, most, None, settled)
        for spec in specs:
            name = spec.name
            rest = [e for e in test if e.id not in done[name]]
            if spec.uses == "strong":
                requests = [Request(messages=self._frames.solo(e), sampling=c.evaluate.answer) for e in rest]
                calls, there = self._ask(self._strong, requests)
                already = there + len(done[name])
                yield Work(
                    "evaluate", name, self._strong, exactly(calls), already, test, self._solo_prompt, c.evaluate.answer
                )
            elif spec.uses == "both":
                # When the SFT model is chosen, its drafts, and so these requests, are those of collab.
                again = spec.needs == "align" and plain and self._shares
                low = 0 if again else self._distinct(rest)
                calls_ = Range(low=low, expected=len(rest), high=len(rest))
                yield Work(
                    "evaluate",
                    name,
                    self._strong,
                    calls_,
                    len(done[name]),
                    test,
                    self._frames.refine,
                    c.evaluate.answer,
                    drafted=c.evaluate.draft,
                )

    def _evaluation_drafts(self, drafting: Sequence[str], done: Mapping[str, set[str]]) -> Work:
        """What the weak model writes for the systems of these names, of which some queries are done."""
        c, test = self._c, self._test
        if self._served:
            requests = [
                Request(messages=self._frames.draft(e), sampling=c.evaluate.draft)
                for s in drafting
                for e in test
                if e.id not in done[s]
            ]
            calls, there = self._ask(self._weak, requests)
            # A refresh asks anew for each system: every one opens the weak model by itself.
            most = len(requests) if c.cache == "refresh" else calls
            count, already = (
                Range(low=calls, expected=calls, high=most),
                there + len(set().union(*(done[s] for s in drafting))),
            )
        else:  # each system opens it by itself, and drafts anew
            already = sum(len(done[s]) for s in drafting)
            count = exactly(len(test) * len(drafting) - already)
        sampling = c.evaluate.draft
        return Work("evaluate", "drafts", self._weak, count, already, test, self._draft_prompt, sampling, drafting=True)

    def _ask(self, model: Source, requests: Sequence[Request]) -> tuple[int, int]:
        """Of these requests: how many calls are to come, and how many answers the ledger has."""
        if not model.paid or not self._shares:
            return len(requests), 0
        return bought(model, requests, self._paid)

    def _fewest(self, queries: Sequence[Example]) -> int:
        """The fewest refinements in a round: a later one may make the very requests of those before it."""
        shared = self._round.number > 1 and self._shares and self._strong.paid
        return 0 if shared else self._distinct(queries)

    def _distinct(self, queries: Sequence[Example]) -> int:
        """The fewest refinements of so many queries: one each, and one for queries that read the same."""
        if not self._shares or not self._strong.paid:
            return len(queries)
        return len({self._frames.refine(e, "") for e in queries})

    def _drafts(self) -> Sequence[Draft] | None:
        """The drafts with a text, once all are there; None before."""
        if not self._done(self._round.stage("sample")):
            return None
        file = self._context.run.file(self._round.file("drafts.jsonl"), Draft)
        return [d for d in file.load() if d.text is not None]

    def _done(self, stage: str) -> bool:
        return stage in self._current and self._current[stage].settled

    def _answers(self, name: str) -> Sequence[Refinement]:
        if self._round.stage("feedback") not in self._current:
            return ()
        return [r for r in self._context.run.file(self._round.file(name), Refinement).load() if r.error is None]

    def _predictions(self, name: str) -> set[str]:
        return {p.example_id for p in self._context.run.file(name, Prediction).load() if p.error is None}

    def _draft_prompt(self, example: Example, _: str) -> Sequence[Message]:
        return self._frames.draft(example)

    def _solo_prompt(self, example: Example, _: str) -> Sequence[Message]:
        return self._frames.solo(example)
