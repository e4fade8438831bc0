"""Azure Blob Storage with the account key or token of a connection string.

pyarrow finds Azure's identities (a machine's, `az login`), but takes a key neither from a URI nor from the
environment. Azure's own tools and DVC read it from AZURE_STORAGE_CONNECTION_STRING, so this module does too.
"""

import os
from typing import Final
from urllib.parse import urlsplit

from pyarrow.fs import AzureFileSystem

CONNECTION: Final = "AZURE_STORAGE_CONNECTION_STRING"
SCHEMES: Final = ("abfs", "abfss")
_SUFFIX: Final = "core.windows.net"


def from_environment(host: str) -> tuple[AzureFileSystem, str] | None:
    """The file system of a URI's host by the connection string in the environment, and its root there.

    Args:
        host: `container`, `account@container`, `container@account.dfs.core.windows.net` or
            `account.blob.core.windows.net`, whose paths begin with the container.

    Returns None if there is no connection string, or the URI is of another account.

    Raises:
        ValueError: the connection string names no account, or neither a key nor a token.
    """
    text = os.environ.get(CONNECTION, "")
    if not text:
        return None
    values = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
    own = values.get("AccountName", "")
    key, token = values.get("AccountKey"), values.get("SharedAccessSignature")
    if not own or not (key or token):
        raise ValueError(f"{CONNECTION} has no AccountName, or neither AccountKey nor SharedAccessSignature")
    account, container = _account_and_container(host)
    if account not in ("", own):
        return None
    scheme, blob = _endpoint(values, own)
    dfs = blob.replace(".blob.", ".dfs.")
    system = AzureFileSystem(
        own,
        account_key=key,
        sas_token=None if key else token,
        blob_storage_authority=blob,
        blob_storage_scheme=scheme,
        dfs_storage_authority=dfs,
        dfs_storage_scheme=scheme,
    )
    return system, container


def _account_and_container(host: str) -> tuple[str, str]:
    """Either is empty if the host does not name it."""
    user, _, server = host.rpartition("@")
    return (server.partition(".")[0], user) if "." in server else (user, server)


def _endpoint(values: dict[str, str], account: str) -> tuple[str, str]:
    """Scheme and authority of the blob service; one that begins with a dot follows the account's name."""
    if endpoint := values.get("BlobEndpoint"):
        parts = urlsplit(endpoint)
        return parts.scheme, parts.netloc.removeprefix(account)
    return values.get("DefaultEndpointsProtocol", "https"), f".blob.{values.get('EndpointSuffix', _SUFFIX)}"
