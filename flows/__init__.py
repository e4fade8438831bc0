"""When things run, and what people see of it: Prefect flows around DVC.

Each flow brings a DVC stage up to date in a process of its own and shows it: its log, its outcome, its
tables and pictures. DVC decides what is out of date and is the only cache; `dvc repro` never needs any of
this. No science and no torch in here.
"""
