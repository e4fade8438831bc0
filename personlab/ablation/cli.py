"""`personlab ablate`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from personlab.ablation.tables import CHOICES, Choice
from personlab.errors import UserError
from personlab.utils import logs


def ablate(
    tables: Annotated[
        list[Choice],
        Parameter(
            name="TABLE",
            help="Input size and stride: table4 (24 rows). Scoring and NMS: table5 (4). Offset refinement: "
            "table6-7 (2). Imputation: table8-9 (2). One side and four: multiscale (2).",
        ),
    ],
    /,
    *,
    listing: Annotated[
        bool, Parameter(name="--list", negative="", help="Only list the rows, their state and commands.")
    ] = False,
    out: Annotated[Path, Parameter(help="Page to write.")] = Path("docs/ablations.md"),
) -> None:
    """Run the paper's ablations, each row a DVC experiment, and write our figures beside the paper's.

    The pipeline must have run ('dvc repro'), and what it depends on must be committed. Only what a row
    changes is run: table4, table5 and multiscale predict and score, each pair of tables trains one network
    more. Inputs of 1401 pixels in the paper have infer.sides of params.yaml here (the middle one of several),
    others are in proportion.

    Your files are not touched: experiments run in runs/ablate, and 'dvc exp show' lists them. Killed at any
    point, the same command goes on; rows that have run are not run again. One that fails does not stop the
    others, but the exit status is 1.
    """
    from personlab.ablation import suite  # --help must not wait for pyarrow and pycocotools
    from personlab.ablation.experiments import Project

    logs.set_context("ablate")
    wanted = list({table.name: table for name in tables for table in CHOICES[name]}.values())
    project = Project.open(Path.cwd())
    if listing:
        print(suite.listing(project, wanted))
    elif failures := suite.run(project, wanted, out):
        raise UserError("\n  ".join([f"{len(failures)} experiments failed:", *map(str, failures)]))
