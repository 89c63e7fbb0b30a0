"""Published files wherever they lie: in a folder, or in a tar or zip file, which is read in place.

Nothing of an archive is ever written to disk under a name that the archive chose.
"""

import contextlib
import errno
import functools
import gzip
import lzma
import os
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, Protocol, runtime_checkable

from wasserstein_adv.errors import InputError

GZIP_MAGIC = b"\x1f\x8b"
_ZIP_MAGIC = b"PK\x03\x04"
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError)
_UNPACKED, _RATIO = 1 << 24, 100  # bytes, and times its packed size: no published file is more
_DEPTH = 5  # TOP/train/CLASS/images/FILE; deeper files belong to no layout, links may make circles


@runtime_checkable
class File(Protocol):
    """A file that can be read, and whose `str` says where it lies; every `pathlib.Path` is one."""

    def read_bytes(self) -> bytes:
        """Return the file's content."""


class Tree(NamedTuple):
    """The files of a folder or of an archive.

    Attributes:
        place: where it lies, for messages.
        files: the regular files by their paths inside, with "/" between folders. Hidden ones and
            those that macOS adds to archives are left out.
    """

    place: str
    files: Mapping[str, File]


class _Member(NamedTuple):
    """A file in an archive."""

    place: str
    read_bytes: functools.partial[bytes]

    def __str__(self) -> str:
        return self.place


@contextlib.contextmanager
def open_tree(path: Path) -> Iterator[Tree]:
    """Open a folder, a tar file, a gzipped tar file or a zip file for reading.

    What an archive is, its first bytes tell, not its name. A gzipped tar file is unpacked once, to
    a temporary file that has no name.

    Args:
        path: the folder or the archive.

    Yields:
        Its files, which can be read until the context ends.

    Raises:
        InputError: there is no such folder or archive, or it is damaged or cannot be read.
    """
    if path.is_dir():
        yield Tree(str(path), dict(_walk(path)))
        return
    if not path.is_file():
        raise InputError(f"{path} is not a folder, nor a tar or zip file")
    with contextlib.ExitStack() as stack:
        yield Tree(str(path), _archived(path, stack))


def most_unpacked(packed: int) -> int:
    """How many bytes may come of so many packed ones; what becomes more is no published file."""
    return max(_UNPACKED, _RATIO * packed)


def read_bytes(file: File) -> bytes:
    """Read a file whole.

    Args:
        file: the file.

    Returns:
        Its content.

    Raises:
        InputError: it cannot be read, or what it lies in is damaged.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from error
    # RuntimeError: encrypted or packed by a method that is not known.
    except (*_DAMAGED, RuntimeError, lzma.LZMAError) as error:
        raise InputError(f"{file}: damaged in its archive ({error})") from error


def read_lines(file: File) -> list[str]:
    """Read the lines of a text file, without their ends.

    Args:
        file: the file, in UTF-8.

    Returns:
        The lines, without empty ones at the end.

    Raises:
        InputError: it cannot be read or is no text.
    """
    try:
        return read_bytes(file).decode().rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not a text file in UTF-8") from error


def _walk(folder: Path, inside: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Path]]:
    """The files in a folder by their paths inside; linked folders count like any other."""
    try:
        with os.scandir(folder) as scan:
            entries = [entry for entry in scan if _visible(entry.name)]
        files = [entry for entry in entries if entry.is_file()]
        folders = [entry for entry in entries if entry.is_dir()]
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error
    for entry in files:
        yield inside + entry.name, Path(entry.path)
    for entry in folders if depth > 1 else ():
        yield from _walk(Path(entry.path), f"{inside}{entry.name}/", depth - 1)


def _archived(path: Path, stack: contextlib.ExitStack) -> dict[str, File]:
    """The files in an archive, which `stack` closes."""
    try:
        file: IO[bytes] = stack.enter_context(path.open("rb"))
        start = file.read(4)
        file.seek(0)
        if start.startswith(_ZIP_MAGIC):
            return _zipped(path, stack.enter_context(zipfile.ZipFile(file)))
        if start.startswith(GZIP_MAGIC):
            file = _unpacked(file, stack)
        return _tarred(path, stack.enter_context(tarfile.open(fileobj=file, mode="r:")))
    # RuntimeError: a version of the format that is not known; ValueError: a name that is no text.
    except (*_DAMAGED, OSError, RuntimeError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise InputError(f"{path}: no room to unpack it in {tempfile.gettempdir()}") from error
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: not a whole tar or zip file ({reason})") from error


def _unpacked(packed: IO[bytes], stack: contextlib.ExitStack) -> IO[bytes]:
    """A temporary file with what a gzip file holds: reading a packed one out of order is slow."""
    most = most_unpacked(os.fstat(packed.fileno()).st_size)
    unpacked = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    with gzip.open(packed) as content:
        while block := content.read(1 << 20):
            unpacked.write(block)
            if unpacked.tell() > most:
                raise ValueError(f"it unpacks to more than {most:,} bytes")
    unpacked.seek(0)
    return unpacked


def _tarred(path: Path, tar: tarfile.TarFile) -> dict[str, File]:
    members: dict[str, File] = {
        name: _Member(f"{path}/{name}", functools.partial(_read_member, tar, member))
        for member in tar
        if member.isreg() and (name := _inside(member.name))
    }
    # tarfile takes a broken header, and a file that ends between two members, for the end.
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no end mark at byte {tar.offset}")
    return members


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    return tar.extractfile(member).read()  # type: ignore[union-attr]  # a regular file


def _read_packed(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > (most := most_unpacked(member.compress_size)):
        raise zipfile.BadZipFile(f"it unpacks to more than {most:,} bytes")
    return archive.read(member)


def _zipped(path: Path, archive: zipfile.ZipFile) -> dict[str, File]:
    return {
        name: _Member(f"{path}/{name}", functools.partial(_read_packed, archive, member))
        for member in archive.infolist()
        if not member.is_dir() and (name := _inside(member.filename))
    }


def _inside(name: str) -> str | None:
    """A member's path with single slashes; None for one that is hidden or leads elsewhere."""
    path = PurePosixPath(name)
    if path.is_absolute() or not all(map(_visible, path.parts)):
        return None
    return str(path)


def _visible(name: str) -> bool:
    return not name.startswith(".") and name not in ("__MACOSX", "Thumbs.db")
