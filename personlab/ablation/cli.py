"""`personlab ablate`."""

import logging
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from personlab.ablation.tables import TABLES, Choice
from personlab.errors import UserError
from personlab.utils import logs
from personlab.utils.files import file_lock, write_atomic
from personlab.utils.process import CommandError

log = logging.getLogger("personlab")


def ablate(
    tables: Annotated[
        list[Choice],
        Parameter(
            name="TABLE",
            help="Input size and stride: table4 (24 rows). Scoring and NMS: table5 (4). Offset refinement: "
            "table6-7 (2). Imputation: table8-9 (2). One scale and four: multiscale (2).",
        ),
    ],
    /,
    *,
    listing: Annotated[
        bool, Parameter(name="--list", negative="", help="Only list the rows: done, queued or not run.")
    ] = False,
    queue: Annotated[
        bool, Parameter(negative="", help="Only add the rows to DVC's queue: 'dvc queue start' runs them.")
    ] = False,
    out: Annotated[Path, Parameter(help="Page to write.")] = Path("docs/ablations.md"),
) -> None:
    """Run the paper's ablations as DVC experiments and write our figures beside the paper's.

    The pipeline must be up to date ('dvc repro'), except for --list. A row is a 'dvc exp run --temp' with
    parameters set: the stages that it changes run in a temporary folder. table4, table5 and multiscale
    predict and score, each pair of tables trains one network. The median of infer.sides stands for the
    paper's 1401 pixels, and other sides are in proportion.

    Rows that are done or in DVC's queue are left out. After an interruption the same command continues, in
    the middle of a training too. A row that fails does not stop the others; the exit status is then 1. Code
    and params.yaml must not change meanwhile. With --queue they may: DVC keeps a copy for each row, and after
    'dvc queue start' the same command without --queue writes the page.
    """
    from personlab.ablation import page  # --help does not wait for DVC and pycocotools
    from personlab.ablation.experiments import Project

    logs.set_context("ablate")
    project = Project.open(Path.cwd())
    chosen = [table for table in TABLES if table.name in tables or "all" in tables]
    rows = [(table, row, project.experiment(row)) for table in chosen for row in table.rows]
    done = {} if project.stale else project.results()
    if listing:
        if project.stale:
            log.warning("ablate: not up to date: %s; no row counts as done", ", ".join(project.stale))
        for table, row, each in rows:
            state = "done" if each.name in done else "queued" if each.name in project.queued else "not run"
            print(f"{state:7}  {table.title}: {row.label(project.side)}\n{'':7}  {each.command}")
        return
    if project.stale:
        raise UserError(
            f"{project.folder}: not up to date: {', '.join(project.stale)}; run 'dvc repro' first"
        )
    experiments = {each.name: each for _, _, each in rows}
    missing = [each for name, each in experiments.items() if name not in {*done, *project.queued}]
    log.info("ablate: %d experiments, %d of them to be run", len(experiments), len(missing))
    failures = []
    with file_lock(project.folder / "runs/ablate.lock", "ablation"):
        for number, experiment in enumerate(missing):
            if Project.open(project.folder).experiment() != project.experiment():
                raise UserError(f"{project.folder}: changed meanwhile; run the same command again")
            label = f"{number + 1}/{len(missing)} {experiment.name}"
            log.info("%s", label, extra=logs.progress("ablate", number, len(missing)))
            try:
                project.run(experiment, "--queue" if queue else "--temp", label)
            except CommandError as error:
                log.error("%s failed: %s", label, error)
                failures.append(f"{experiment.name}: {error}")
        if not queue:
            write_atomic(out, page.markdown(project))
    log.info("ablate: %s", "'dvc queue start' runs the queue" if queue else f"{out} written")
    if failures:
        raise UserError("\n  ".join([f"{len(failures)} experiments failed:", *failures]))
