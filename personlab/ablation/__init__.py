"""The paper's ablations (appendix A) and its multi-scale comparison, each row a DVC experiment.

    tables.py       the paper's tables: rows, their parameters, the paper's figures
    experiments.py  a row as a configuration of the pipeline; what it found, remembered
    clone.py        where experiments run, beside the person's own files
    suite.py        runs what is missing, row after row
    verdict.py      whether a difference agrees with the paper's
    pages.py        docs/ablations.md

A row is `dvc exp run` with some parameters set, in a clone that shares DVC's cache: stages that a row does
not change are never run, and rows that come to the same configuration are one experiment. What it found is
kept in runs/ablations/<experiment>.json: its scores, and those of 1000 resamplings of the validation images.
The experiment's name holds a hash of all that decides its result (the pipeline, the code and the parameters
that it depends on, the data), so what has been run is known and not run again; if runs/ is deleted, DVC's
cache still has it. Killed at any point, the same command goes on, in the middle of a training too.
"""
