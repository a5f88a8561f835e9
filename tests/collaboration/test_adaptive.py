from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from cowest.collaboration.adaptive import TRIED, Look, Plan, Said, Why, ordered, saved
from cowest.collaboration.preference import Rule


def said(query: str, *answers: str) -> list[Said]:
    return [Said(f"{query}#{i}", f"text {i} of {query} Answer: {a}", a) for i, a in enumerate(answers)]


def plan(
    queries: dict[str, list[Said]], alone: bool = True, rule: Rule = "ordered", limit: int | None = None, lot: int = 64
) -> Plan:
    return Plan(queries, frozenset(), alone, rule, limit=limit, lot=lot)


def test_two_drafts_first_then_one_by_one_until_there_is_a_contrast() -> None:
    made = plan({"a": said("a", "yes", "no", "yes", "no"), "b": said("b", "no", "yes", "no")})
    first = made.next_lot()
    assert {(s.query, s.alone, s.drafts) for s in first} == {("a", True, ("a#0", "a#1")), ("b", True, ("b#0", "b#1"))}
    made.tell({"a": Look(True), "b": Look(False)})
    (second,) = made.next_lot()
    assert (second.query, second.alone, second.drafts) == ("b", False, ("b#2",))
    made.tell({"b": Look(False)})
    assert made.next_lot() == [] and made.spent == 3 + 3 + 1
    assert made.not_asked() == {"a#2": "contrast", "a#3": "contrast"}


def test_the_paper_rule_asks_the_strong_model_alone_first() -> None:
    made = plan({"right": said("right", "yes", "no"), "wrong": said("wrong", "yes", "no")}, rule="paper")
    assert [(s.alone, s.drafts) for s in made.next_lot()] == [(True, ()), (True, ())]
    made.tell({"right": Look(False, hope=False), "wrong": Look(False)})
    (step,) = made.next_lot()
    assert (step.query, step.alone, step.drafts) == ("wrong", False, ("wrong#0", "wrong#1"))
    made.tell({"wrong": Look(False)})
    assert made.next_lot() == [] and made.spent == 4
    assert made.not_asked() == {"right#0": "no hope", "right#1": "no hope"}


def test_one_draft_alone_has_no_contrast() -> None:
    made = plan({"a": said("a", "yes"), "b": []})
    assert made.next_lot() == [] and made.not_asked() == {"a#0": "alike"}


def test_calls_go_where_pairs_have_come_before() -> None:
    """Queries whose drafts differ gave pairs, others none: after a look at both, calls go to those that differ."""
    queries = {f"same{i}": said(f"same{i}", "yes", "yes") for i in range(20)}
    queries |= {f"other{i}": said(f"other{i}", "yes", "no") for i in range(20)}
    made, asked = plan(queries, alone=False, limit=2 * (2 * TRIED + 6), lot=2 * TRIED), list[str]()
    while lot := made.next_lot():
        asked += [step.query for step in lot]
        made.tell({step.query: Look(step.query.startswith("other")) for step in lot})
    assert asked[:4] == ["same0", "other0", "same1", "other1"]  # nothing is known: each in turn
    assert asked[2 * TRIED :] == [f"other{i}" for i in range(TRIED, TRIED + 6)]
    assert made.not_asked()["other19#0"] == "the limit" and made.not_alone() == {}


def test_a_right_draft_beside_a_wrong_one_is_a_kind_of_its_own() -> None:
    def scored(query: str, *scores: float) -> list[Said]:
        return [Said(f"{query}#{i}", f"text {i} of {query}", f"answer {i}", score) for i, score in enumerate(scores)]

    queries = {f"wrong{i}": scored(f"wrong{i}", 0, 0, 0) for i in range(20)}
    queries |= {f"both{i}": scored(f"both{i}", 0, 0, 1) for i in range(20)}
    queries = {id: ordered(row, 1.0)[0] for id, row in queries.items()}
    assert [d.id for d in queries["both0"]] == ["both0#0", "both0#2", "both0#1"]
    made, asked = plan(queries, alone=False, limit=80, lot=8), list[str]()
    while lot := made.next_lot():
        asked += [step.query for step in lot]
        made.tell({step.query: Look(step.query.startswith("both")) for step in lot})
    assert sum(id.startswith("both") for id in asked) == 20


def test_samples_beside_an_answer_are_calls_too_and_answers_alone_may_be_known() -> None:
    queries = {"a": said("a", "yes", "no"), "b": said("b", "yes", "no")}
    made = Plan(queries, frozenset(), True, "ordered", known_alone=frozenset({"a"}), calls={"a": 5, "b": 5}, limit=20)
    assert [s.query for s in made.next_lot()] == ["a"]  # 10 calls; b would take 15
    assert made.spent == 10


def test_drafts_are_asked_for_as_they_differ() -> None:
    drafts = [
        Said("0", "It rises. Answer: yes", "yes"),
        Said("1", "it rises; answer: yes!", "yes"),  # the same but for punctuation
        Said("2", "It rises slowly. Answer: yes", "yes"),
        Said("3", "It falls. Answer: no", "no"),
    ]
    order, like = ordered(drafts, 1.0)
    assert [d.id for d in order] == ["0", "3", "2"] and [d.id for d in like] == ["1"]
    order, like = ordered(drafts, 0.8)
    assert [d.id for d in order] == ["0", "3"] and [d.id for d in like] == ["1", "2"]


def test_what_was_saved_is_counted_in_calls() -> None:
    reasons: dict[str, Why] = {"a": "contrast", "b": "alike", "c": "contrast", "d": "no hope", "query": "no hope"}
    keys = {"asked": "k0", "a": "k1", "b": "k0", "c": "k2", "d": "k3"}  # b has the words of one that was asked for
    calls = dict.fromkeys([*keys, "query"], 5)
    assert saved(reasons, keys, calls) == {"calls_saved_contrast": 10, "calls_saved_no_hope": 10}
    assert saved({"a": "alike", "b": "alike"}, {"a": "k1", "b": "k1"}, {}) == {"calls_saved_alike": 1}


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("xyz"), max_size=5), min_size=1, max_size=12),
    st.integers(0, 60),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from(["ordered", "paper"]),
)
def test_every_draft_is_asked_for_or_not_once_and_the_limit_holds(
    answers: list[list[str]], limit: int, lot: int, alone: bool, rule: Rule
) -> None:
    queries = {f"q{i}": said(f"q{i}", *row) for i, row in enumerate(answers)}

    def run() -> tuple[list[str], dict[str, str], int]:
        made, asked = plan(queries, alone, rule, limit, lot), list[str]()
        while steps := made.next_lot():
            assert len(steps) <= lot and len({s.query for s in steps}) == len(steps)
            looks = {}
            for step in steps:
                asked += step.drafts
                seen = [d.answer for d in queries[step.query] if d.id in asked]
                looks[step.query] = Look(len(set(seen)) > 1)
            made.tell(looks)
        return asked, dict(made.not_asked()), made.spent

    asked, why, spent = run()
    everything = [d.id for row in queries.values() for d in row]
    assert sorted([*asked, *why]) == sorted(everything) and len(set(asked)) == len(asked)
    assert spent <= limit and (asked, why, spent) == run()
    for row in queries.values():
        flags = [d.id in asked for d in row]
        assert all(a or not b for a, b in pairwise(flags))  # in the order given
