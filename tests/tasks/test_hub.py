"""Datasets through the ``datasets`` library: copies that we make in the hub's layout, in a folder. The hub is not reached."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from cowest.errors import DataError
from cowest.recipe.config import IfqaTaskConfig, ProsocialTaskConfig, PubmedqaTaskConfig, config_from_dict
from cowest.tasks.base import SPLITS, SimpleTask
from cowest.tasks.benchmark import SAMPLES
from cowest.tasks.ifqa import load_ifqa
from cowest.tasks.prosocial import load_prosocial
from cowest.tasks.pubmedqa import load_pubmedqa, official_splits

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def publish(folder: Path, config: str, splits: Mapping[str, Sequence[dict[str, object]]]) -> str:
    """Write a dataset as the hub holds it: a card that names the files, and Parquet."""
    lines = ["---", "configs:", f"- config_name: {config}", "  data_files:"]
    for split, rows in splits.items():
        file = folder / config / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(list(rows)).to_parquet(file)
        lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
    return str(folder)


def json_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def hub_rows(path: Path) -> list[dict[str, object]]:
    """``ori_pqal.json`` in the hub's layout."""
    return [
        {
            "pubid": int(pmid),
            "question": row["QUESTION"],
            "context": {
                "contexts": row["CONTEXTS"],
                "labels": row["LABELS"],
                "meshes": row["MESHES"],
                "reasoning_required_pred": [],
                "reasoning_free_pred": [],
            },
            "long_answer": row["LONG_ANSWER"],
            "final_decision": row["final_decision"],
        }
        for pmid, row in json.loads(path.read_bytes()).items()
    ]


def examples(task: SimpleTask) -> dict[str, object]:
    return {split: task.examples(split) for split in SPLITS}


def test_ifqa_by_name_is_ifqa_from_files(tmp_path: Path) -> None:
    names = {"train": "train", "dev": "validation", "test": "test"}
    splits = {new: json.loads((SAMPLES / "ifqa" / f"{old}.json").read_bytes()) for old, new in names.items()}
    config = IfqaTaskConfig(kind="ifqa", hub=publish(tmp_path / "ifqa", "default", splits), official=False)
    assert examples(load_ifqa(config)) == examples(load_ifqa(IfqaTaskConfig(kind="ifqa", sample=True)))
    with pytest.raises(DataError, match="ifqa: train: 6 rows, and IfQA has 2,400 here"):
        load_ifqa(config.model_copy(update={"official": True}))


def test_prosocial_by_name_is_prosocial_from_files(tmp_path: Path) -> None:
    names = {"train": "train", "valid": "validation", "test": "test"}
    splits = {new: json_lines(SAMPLES / "prosocial" / f"{old}.json") for old, new in names.items()}
    hub = publish(tmp_path / "prosocial", "default", splits)
    config = ProsocialTaskConfig(kind="prosocial", hub=hub, official=False)
    sample = ProsocialTaskConfig(kind="prosocial", sample=True)
    assert examples(load_prosocial(config)) == examples(load_prosocial(sample))


def test_pubmedqa_by_name_takes_the_official_test_ids(tmp_path: Path) -> None:
    rows = hub_rows(SAMPLES / "pubmedqa" / "ori_pqal.json")
    test_id = min(official_splits()["test"])
    rows[0]["pubid"] = int(test_id)
    hub = publish(tmp_path / "pubmedqa", "pqa_labeled", {"train": rows})
    task = load_pubmedqa(PubmedqaTaskConfig(kind="pubmedqa", hub=hub, official=False))
    assert [e.id for e in task.examples("test")] == [test_id]
    assert task.examples("test")[0].context == "\n".join(
        f"{label}: {text}"
        for label, text in zip(
            ("BACKGROUND", "METHODS AND RESULTS"),
            json.loads((SAMPLES / "pubmedqa" / "ori_pqal.json").read_bytes())["90000001"]["CONTEXTS"],
            strict=True,
        )
    )
    assert len(task.examples("train")) + len(task.examples("validation")) == 11
    with pytest.raises(DataError, match="pqa_labeled: 12 rows, and PubMedQA's PQA-L has 1,000 here"):
        load_pubmedqa(PubmedqaTaskConfig(kind="pubmedqa", hub=hub))


def test_the_real_pubmedqa_in_the_hubs_layout_is_the_official_task(tmp_path: Path, data_dir: Path) -> None:
    rows = hub_rows(data_dir / "pubmedqa" / "ori_pqal.json")
    hub = publish(tmp_path / "pubmedqa", "pqa_labeled", {"train": rows})
    from_hub = load_pubmedqa(PubmedqaTaskConfig(kind="pubmedqa", hub=hub, fold=3))
    from_files = load_pubmedqa(PubmedqaTaskConfig(kind="pubmedqa", path=data_dir / "pubmedqa", fold=3))
    assert examples(from_hub) == examples(from_files)


def test_a_row_that_is_wrong_is_named(tmp_path: Path) -> None:
    rows = json_lines(SAMPLES / "prosocial" / "train.json")
    rows[2]["safety_label"] = "fine"
    hub = publish(tmp_path / "d", "default", {"train": rows, "validation": rows[:2], "test": rows[:2]})
    with pytest.raises(DataError, match="d: train row 3: \"safety_label\" is 'fine'; known are __casual__"):
        load_prosocial(ProsocialTaskConfig(kind="prosocial", hub=hub, official=False))


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    rows = json_lines(SAMPLES / "prosocial" / "train.json")
    hub = publish(tmp_path / "d", "default", {"train": rows, "test": rows})
    with pytest.raises(DataError, match=r"d: has no split 'valid' \(it has: train, test\); give task\.path instead"):
        load_prosocial(ProsocialTaskConfig(kind="prosocial", hub=hub))


def test_a_dataset_that_cannot_be_had_says_how_to_do_without_the_hub(tmp_path: Path) -> None:
    for hub in ("no-such-owner/no-such-dataset", str(tmp_path / "nothing")):
        with pytest.raises(
            DataError, match=r"cannot be loaded from the hub .*give their folder as task\.path"
        ) as caught:
            load_prosocial(ProsocialTaskConfig(kind="prosocial", hub=hub))
        assert "\n" not in str(caught.value)


def test_a_copy_beside_the_recipe_is_found(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    task = {"kind": "ifqa", "hub": "copy"}
    raw = {"name": "r", "task": task, "weak": {"kind": "local", "model": "m"}, "strong": {"kind": "scripted"}}
    config = config_from_dict(json.loads(json.dumps(raw)), tmp_path)
    assert isinstance(config.task, IfqaTaskConfig) and config.task.hub == str((tmp_path / "copy").resolve())
