"""Connection strings of Azure; tests/test_object_store.py has a real server."""

from typing import Any

import pytest

from personlab.errors import UserError
from personlab.utils import azure, storage

NAME = "AccountName=mine"


def of(monkeypatch: pytest.MonkeyPatch, connection: str, host: str) -> tuple[dict[str, Any], str] | None:
    """What the file system is made from, and its root."""
    monkeypatch.setenv(azure.CONNECTION, connection)
    found = azure.from_environment(host)
    return found and (found[0].__reduce__()[1][0], found[1])


@pytest.mark.parametrize(
    ("host", "root"),
    [
        ("photos", "photos"),
        ("mine@photos", "photos"),
        ("photos@mine.dfs.core.windows.net", "photos"),
        ("mine.blob.core.windows.net", ""),
    ],
)
def test_hosts_of_the_account(monkeypatch: pytest.MonkeyPatch, host: str, root: str) -> None:
    found = of(monkeypatch, f"DefaultEndpointsProtocol=https;{NAME};AccountKey=a+/b==", host)
    assert found is not None
    made, at = found
    assert at == root
    assert (made["account_name"], made["account_key"]) == ("mine", "a+/b==")
    assert made["blob_storage_authority"] == ".blob.core.windows.net"
    assert made["dfs_storage_authority"] == ".dfs.core.windows.net"


@pytest.mark.parametrize(
    ("part", "scheme", "blob"),
    [
        ("EndpointSuffix=core.chinacloudapi.cn", "https", ".blob.core.chinacloudapi.cn"),
        ("BlobEndpoint=https://mine.blob.core.windows.net/", "https", ".blob.core.windows.net"),
        ("BlobEndpoint=http://127.0.0.1:10000/mine", "http", "127.0.0.1:10000"),
    ],
)
def test_endpoints(monkeypatch: pytest.MonkeyPatch, part: str, scheme: str, blob: str) -> None:
    found = of(monkeypatch, f"{NAME};SharedAccessSignature=sv=1&sig=x;{part}", "photos")
    assert found is not None
    made, _ = found
    assert (made["sas_token"], made["blob_storage_scheme"]) == ("sv=1&sig=x", scheme)
    assert made["blob_storage_authority"] == blob


def test_another_account_and_no_connection_string_are_left_to_pyarrow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert of(monkeypatch, f"{NAME};AccountKey=x", "photos@other.dfs.core.windows.net") is None
    assert of(monkeypatch, "", "photos") is None


@pytest.mark.parametrize("connection", ["nonsense", NAME, "AccountKey=x"])
def test_a_connection_string_without_account_or_key(monkeypatch: pytest.MonkeyPatch, connection: str) -> None:
    monkeypatch.setenv(azure.CONNECTION, connection)
    with pytest.raises(UserError, match=r"abfs://broken.*AZURE_STORAGE_CONNECTION_STRING has no AccountName"):
        storage.kind("abfs://broken/x")
    storage._system.cache_clear()
