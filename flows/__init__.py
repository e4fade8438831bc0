"""Prefect flows around DVC: schedules, retries, artifacts, promotion.

Each flow runs commands of DVC or personlab in processes of their own and shows their log, progress, outcome
and results. DVC decides what is out of date and is the only cache; `dvc repro` never needs a Prefect server.
Flows hold no science and do not import torch.
"""
