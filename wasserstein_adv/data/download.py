"""Download published files, trusting nothing but their checksums."""

import hashlib
import http.client
import urllib.request
from pathlib import Path
from typing import NamedTuple

from wasserstein_adv.errors import InputError

_SILENCE_S = 10  # after which an address is given up
_CHUNK = 1 << 20


class Download(NamedTuple):
    """A published file.

    Attributes:
        addresses: where it can be had, in the order to try them; all end in its name.
        size: its size in bytes.
        sha256: its SHA-256, in hexadecimal.
    """

    addresses: tuple[str, ...]
    size: int
    sha256: str


def fetch(download: Download, folder: Path) -> Path:
    """Download a file from the first address that has it.

    Args:
        download: the file.
        folder: where to put it, under its published name.

    Returns:
        The file's path.

    Raises:
        InputError: no address can be reached and has the file with the right checksum.
    """
    failures = []
    for address in download.addresses:
        path = folder / address.rsplit("/", 1)[-1]
        try:
            size, checksum = _save(address, path, download.size)
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{address}: {' '.join(str(error).split()) or type(error).__name__}")
            continue
        if (size, checksum) == (download.size, download.sha256):
            return path
        failures.append(f"{address}: wrong checksum {checksum}, expected {download.sha256}")
    raise InputError(f"the download failed ({'; '.join(failures)})")


def _save(address: str, path: Path, size: int) -> tuple[int, str]:
    """Write what an address sends, not much more than `size`; return how much and its SHA-256."""
    digest, received = hashlib.sha256(), 0
    with urllib.request.urlopen(address, timeout=_SILENCE_S) as response, path.open("wb") as file:
        while received <= size and (chunk := response.read(_CHUNK)):
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
    return received, digest.hexdigest()
