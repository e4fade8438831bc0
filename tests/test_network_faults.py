"""Batch inference on hosts in network namespaces of their own, while a cable is pulled.

tests/network_faults.py has more rows, which take minutes.
"""

import tempfile
from pathlib import Path

import pytest

from tests import hosts, network_faults

pytestmark = pytest.mark.slow


def test_a_cable_is_pulled_for_five_seconds() -> None:
    with tempfile.TemporaryDirectory(prefix="pl", dir="/tmp") as name:  # short, for Ray's sockets
        network_faults.save_inputs(Path(name))
        try:
            with hosts.cluster(2, Path(name)) as cluster:
                assert network_faults.batch("5s", cluster, Path(name)) == "same bytes"
        except hosts.NotPermittedError as error:
            pytest.skip(f"needs the right to make network namespaces ({error})")
