from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from cowest.collaboration.adaptive import Look, Plan, Said, ordered, saved
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
    """Queries whose drafts differ gave pairs, others none: the next calls go to those that differ."""
    queries = {f"same{i}": said(f"same{i}", "yes", "yes") for i in range(8)}
    queries |= {f"other{i}": said(f"other{i}", "yes", "no") for i in range(8)}
    made = plan(queries, alone=False, limit=16, lot=4)
    first = made.next_lot()
    assert [s.query for s in first] == ["same0", "same1", "same2", "same3"]  # nothing is known: in order
    made.tell({s.query: Look(s.query.startswith("other")) for s in first})
    second = made.next_lot()
    assert [s.query for s in second] == ["other0", "other1", "other2", "other3"]
    made.tell({s.query: Look(True) for s in second})
    assert made.next_lot() == [] and made.spent == 16
    why = made.not_asked()
    assert why["other4#0"] == "the limit" and "same0#0" not in why


def test_samples_beside_an_answer_are_calls_too_and_answers_alone_may_be_known() -> None:
    queries = {"a": said("a", "yes", "no"), "b": said("b", "yes", "no")}
    made = Plan(queries, frozenset(), True, "ordered", known_alone=frozenset({"a"}), calls=5, limit=20)
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
    assert saved({"a": "contrast", "b": "alike", "c": "contrast", "d": "no hope"}, 5) == {
        "calls_saved_alike": 5, "calls_saved_contrast": 10, "calls_saved_no_hope": 5,
    }  # fmt: skip


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
