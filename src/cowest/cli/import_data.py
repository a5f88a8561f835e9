"""``cowest import``: the options, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional, TypeAlias

import typer

# typer reads these annotations, and knows Optional only
Source: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="FILE|FOLDER|HUB_NAME",
        help="CSV, TSV, JSON, JSONL (also .gz, .bz2, .xz), Parquet; a folder with train.*, dev.*, test.*, or saved by "
        "`datasets`; a dataset of the Hugging Face hub.",
        show_default=False,
    ),
]
Out: TypeAlias = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="A new or empty folder. Unset: the preview alone.", show_default=False),
]
Map: TypeAlias = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--map",
        metavar="COLUMN=FIELD",
        help="What a column is: input, answer, context, rationale, choices, messages, completion, id, group, split, metadata; "
        "nothing after = for a column that is not used. Repeat it; several columns of one field are joined.",
    ),
]
Split: TypeAlias = Annotated[
    str, typer.Option(help="Shares of train, validation, test; splits of the source are kept.")
]
Seed: TypeAlias = Annotated[int, typer.Option(min=0, help="Of the split and of the rows' order.")]
Answers: TypeAlias = Annotated[
    str, typer.Option(help="auto, classes or open: what the answers are; none: there are none.")
]
Overwrite: TypeAlias = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier import in --out.")]
Config: TypeAlias = Annotated[Optional[str], typer.Option(help="The configuration of a hub's dataset.")]  # noqa: UP045
Encoding: TypeAlias = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Of a text file that is not UTF-8 and has no mark: cp1252, latin-1, ..."),
]
FirstIndex: TypeAlias = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=0, max=1, help="What the index of a first choice is; found out unless given."),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of text.")]


def import_data(
    source: Source,
    out: Out = None,
    map_: Map = None,
    split: Split = "80/10/10",
    seed: Seed = 0,
    answers: Answers = "auto",
    overwrite: Overwrite = False,
    config: Config = None,
    encoding: Encoding = None,
    first_index: FirstIndex = None,
    as_json: Json = False,
) -> None:
    """Turn data into the files of a task and a recipe: shows what it takes the columns for, then splits and writes.

    Equal and near-equal questions, and rows of one id or group, land in one split; classes are spread alike.
    """
    from cowest.cli.output_import import plan_as_json, print_done, print_plan
    from cowest.errors import ConfigError
    from cowest.importing.importer import as_answers, look_at
    from cowest.importing.importer import import_data as import_rows
    from cowest.importing.splitting import parse_shares
    from cowest.run.progress import QuietReporter, default_reporter

    parse_shares(split)
    wanted = as_answers(answers)
    if out is not None and out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; give a folder with --out")
    plan = look_at(source, map_ or [], config=config, encoding=encoding, first_index=first_index)
    if not as_json:
        print_plan(plan)
    if out is None:
        print(json.dumps(plan_as_json(plan), indent=2) if as_json else "Nothing is written without --out DIR.")
        return
    done = import_rows(
        source,
        out,
        split=split,
        seed=seed,
        answers=wanted,
        overwrite=overwrite,
        plan=plan,
        reporter=QuietReporter() if as_json else default_reporter(),
    )
    print(done.model_dump_json(indent=2)) if as_json else print_done(done, plan)
