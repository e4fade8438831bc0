"""Nodes of the cluster that fault tests share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def removed(cluster: Any, node: Any) -> Iterator[None]:
    """Without a node, which is killed; afterwards another has taken its place, however that went."""
    cluster.remove_node(node, allow_graceful=False)
    try:
        yield
    finally:
        cluster.add_node(num_cpus=1)
