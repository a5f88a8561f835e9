"""A whole table on tiny models, the strong one behind HTTP: what is shared, what is resumed, what a row that fails becomes."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import Log, save_tiny_model, tiny_recipe

from cowest.errors import ConfigError
from cowest.models.endpoint import make_app, serve
from cowest.models.scripted import ScriptedChatModel
from cowest.recipe.config import RunConfig, config_from_dict
from cowest.table.plan import make_plan
from cowest.table.results import TableResults, pools, results_of
from cowest.table.run import open_plan, run_table
from cowest.table.write import write_table
from cowest.types import Message, Sampling

pytest.importorskip("bm25s")
pytestmark = pytest.mark.slow

ROWS: list[JsonValue] = [
    "weak", "strong", "strong_self_refine", "bm25", "flare", "rlwf", "sft_positives", "collab_direct", "collab_cot",
    "collab_cot_aligned",
]  # fmt: skip


def reply(messages: Sequence[Message], sampling: Sampling) -> str:
    asked = "".join(m.content for m in messages)
    return f"Let me see.\nAnswer: {('yes', 'no', 'maybe')[hashlib.sha256(asked.encode()).digest()[0] % 3]}"


def recipe(weak: str, url: str, table: dict[str, JsonValue]) -> RunConfig:
    return config_from_dict(tiny_recipe(weak, url, table=table))


def run(config: RunConfig, out: Path, log: Log | None = None) -> TableResults:
    plan = make_plan(config)
    asyncio.run(run_table(plan, out, log or Log()))
    return results_of(plan, pools(plan, open_plan(plan, out, Log(), offline=True)))


class Strong:
    """A strong model behind HTTP in the test's own loop; counts what it is asked."""

    def __init__(self) -> None:
        self.model = ScriptedChatModel(reply)

    def table(self, weak: str, table: dict[str, JsonValue], out: Path, log: Log | None = None) -> TableResults:
        async def go() -> TableResults:
            async with serve(make_app(self.model, model_name="strong")) as url:
                plan = make_plan(recipe(weak, url, table))
                await run_table(plan, out, log or Log())
                return results_of(plan, pools(plan, open_plan(plan, out, Log(), offline=True)))

        return asyncio.run(go())

    @property
    def asked(self) -> Counter[str]:
        return Counter(
            json.dumps([r.model_dump_json(exclude={"sampling"}), r.sampling.model_dump_json(exclude={"seed"})])
            for r in self.model.requests
        )


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("weak"))


@pytest.fixture(scope="module")
def made(weak: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[TableResults, Strong, Path, Log]:
    out, strong, log = tmp_path_factory.mktemp("table"), Strong(), Log()
    return strong.table(weak, {"rows": ROWS}, out, log), strong, out, log


def test_every_row_is_there_with_paired_differences(made: tuple[TableResults, Strong, Path, Log]) -> None:
    results, _, out, _ = made
    (table,) = results.tables
    assert list(table.rows) == ROWS and results.baseline == "collab_cot_aligned"
    for name, row in table.rows.items():
        assert row.queries == 12
        assert row.metrics["accuracy"].n_failed == (12 if name == "flare" else 0), name
    compared = {d.comparison.a for d in table.differences if d.comparison.metric == "accuracy"}
    assert compared == set(ROWS) - {"collab_cot_aligned"}
    assert sum(row.marks["accuracy"] == "best" for row in table.rows.values()) == 1
    assert {p.name for p in write_table(results, out).values()} == {
        "results.json",
        "table.md",
        "table.csv",
        "table.tex",
        "uptake.csv",
        "pooled.csv",
    }


def test_no_row_pays_twice_for_a_request(made: tuple[TableResults, Strong, Path, Log]) -> None:
    _, strong, _, _ = made
    repeated = {key: n for key, n in strong.asked.items() if n > 1}
    # FLARE asks for log-probabilities beside the answer, which is another request than strong's (this server gives none).
    assert len(repeated) <= 12 and set(repeated.values()) <= {2}
    assert not any("Draft: " in key for key in repeated)


def test_stages_are_made_once_and_taken_over(made: tuple[TableResults, Strong, Path, Log]) -> None:
    _, _, out, log = made
    trained = [line for line in log.lines if ": sft: run" in line]
    assert len(trained) == 2  # the recipe's own format and direct; rlwf, positives and the aligned rows share the first
    assert any(": sft: reused from " in line for line in log.lines)
    folders = {p.name for p in (out / "seed-3").iterdir() if p.is_dir()}
    assert folders == {"main", "rlwf", "positives", "direct"}


def test_a_model_without_log_probabilities_fails_the_row_and_not_the_table(
    made: tuple[TableResults, Strong, Path, Log],
) -> None:
    results, _, _, log = made
    assert any("flare: given up" in line for line in log.lines)
    flare = results.tables[0].rows["flare"].metrics["accuracy"]
    assert flare.mean is None and flare.n == 0


def test_a_second_run_asks_for_nothing_but_what_failed(made: tuple[TableResults, Strong, Path, Log], weak: str) -> None:
    first, _, out, _ = made
    strong = Strong()
    rows: list[JsonValue] = [row for row in ROWS if row != "flare"]
    again = strong.table(weak, {"rows": rows}, out)
    assert not strong.model.requests
    for name in rows:
        assert again.tables[0].rows[str(name)].metrics == first.tables[0].rows[str(name)].metrics


def test_a_grid_shares_what_the_weak_one_made(weak: str, tmp_path: Path) -> None:
    log, strong = Log(), Strong()
    grid: dict[str, JsonValue] = {"a": {}, "b": {"evaluate.answer.max_tokens": 10}}
    table: dict[str, JsonValue] = {"rows": ["weak", "collab_cot"], "grid": grid, "axis": "answer", "seeds": [3, 4]}
    results = strong.table(weak, table, tmp_path, log)
    assert [t.label for t in results.tables] == ["a", "b"]
    assert sum(": sft: run" in line for line in log.lines) == 2  # one a seed, none a point
    assert results.tables[0].rows["weak"].metrics == results.tables[1].rows["weak"].metrics
    assert results.tables[0].rows["collab_cot"].queries == 24  # pooled over the seeds
    assert set(results.tables[0].by_seed) == {"3", "4"}
    along = {d.row: d for d in results.grid_differences}
    assert set(along) == {"weak", "collab_cot"} and along["collab_cot"].comparison.n == 24
    assert along["weak"].comparison.diff == 0.0 and along["weak"].p_holm == 1.0


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"rows": ["bm52"]}, r"table.rows: there is no system 'bm52'; did you mean 'bm25'\?"),
        ({"rows": ["bm25"], "baseline": "dense"}, "table.baseline: 'dense' is not among the rows"),
        (
            {"rows": ["bm25"], "grid": {"x": {"strongg.model": "y"}}},
            "table.grid.x: .*unknown key; did you mean 'strong'",
        ),
        ({"rows": ["bm25"], "grid": {"../x": {}}}, "the label '../x' becomes a folder"),
        ({"rows": ["bm25"], "grid": {"x": {"seed": 3}}}, "seed cannot vary within a table"),
        ({"rows": ["bm25"], "seeds": [1, 1]}, "a seed is named twice"),
    ],
)
def test_bad_tables_are_refused_before_anything_is_paid(
    table: dict[str, JsonValue], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(recipe(str(tmp_path), "http://127.0.0.1:1/v1", table))


def test_a_served_weak_model_has_no_trained_rows() -> None:
    served: JsonValue = {"kind": "openai", "model": "w", "api_key_env": None, "base_url": "http://127.0.0.1:1/v1"}
    base = tiny_recipe("w", "http://127.0.0.1:1/v1") | {"weak": served}
    plan = make_plan(config_from_dict(base))
    assert "rlwf" in plan.left_out and "collab_cot_aligned" in plan.left_out
    assert "collab_cot" in {row.name for row in plan.rows}
    with pytest.raises(ConfigError, match="rlwf is not possible here"):
        make_plan(config_from_dict(base | {"table": {"rows": ["rlwf"]}}))


def test_a_recipe_without_alignment_has_no_aligned_rows() -> None:
    base = tiny_recipe("w", "http://127.0.0.1:1/v1") | {"align": "off"}
    plan = make_plan(config_from_dict(base))
    names = {row.name for row in plan.rows}
    assert "collab_cot_aligned" in plan.left_out and "rlwf" in plan.left_out and "collab_cot" in names
    assert "sft_positives" in names  # which has an objective of its own


def test_old_names_of_rows_and_baseline_are_read() -> None:
    table: JsonValue = {"rows": ["weak_sft", "strong_cot", "collab"], "baseline": "strong_cot"}
    plan = make_plan(config_from_dict(tiny_recipe("w", "http://127.0.0.1:1/v1") | {"table": table}))
    assert [row.name for row in plan.rows] == ["weak", "strong", "collab"] and plan.baseline == "strong"


def test_rows_with_settings_of_their_own_are_compared_in_one_table(weak: str, tmp_path: Path) -> None:
    variants: JsonValue = {"two": {"rounds.most": 2, "rounds.stop": "never"}, "short": {"align.max_steps": 2}}
    rows: JsonValue = ["collab", "collab_aligned", "collab_aligned@two", "collab_aligned@short"]
    strong, log = Strong(), Log()
    table: dict[str, JsonValue] = {"rows": rows, "variants": variants, "baseline": "collab_aligned"}
    results = strong.table(weak, table, tmp_path / "table", log)
    (one,) = results.tables
    assert list(one.rows) == rows
    assert {d.comparison.a for d in one.differences} == {"collab", "collab_aligned@two", "collab_aligned@short"}
    assert (tmp_path / "table/seed-3/two/round-2/align/selection.json").is_file()
    assert sum("sft: run" in line for line in log.lines) == 1, "what the settings do not touch is made once"
    write_table(results, tmp_path / "table")
    assert "| `collab_aligned@two` |" in (tmp_path / "table/table.md").read_text()


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"rows": ["collab_aligned@two"]}, "table.variants has no 'two'; there are: none"),
        ({"rows": ["collab_kto@a"], "variants": {"a": {"align.beta": 1}}}, "collab_kto has settings of its own"),
        ({"rows": ["collab"], "variants": {"kto": {"align.beta": 1}}}, "table.variants.kto: there is a variant"),
        ({"rows": ["collab"], "variants": {"a": {"align.bta": 1}}}, "table.variants.a: .*align.bta"),
        ({"rows": ["collab"], "variants": {"a": {"seed": 1}}}, "table.variants.a: seed cannot vary"),
    ],
)
def test_wrong_variants_are_said_before_anything_runs(table: dict[str, JsonValue], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_plan(recipe("weak", "http://127.0.0.1:9/v1", table))
