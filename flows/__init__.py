"""Prefect flows around DVC: schedules, retries, artifacts, promotion.

Each flow runs commands of DVC or personlab in processes of their own and shows their log, progress, outcome
and results. DVC decides what is out of date and is the only cache; `dvc repro` never needs a Prefect server.
Flows hold no science and do not import torch.
"""

import io
import sys
from contextlib import redirect_stderr

from pydantic import ValidationError

try:
    with redirect_stderr(io.StringIO()):  # Prefect prints the error, too
        import prefect.context  # noqa: F401 # reads the settings
except ValidationError as error:
    sys.exit(f"error: Prefect's settings (PREFECT_API_URL and so on): {error.errors()[0]['msg']}")
