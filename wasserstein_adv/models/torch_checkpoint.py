"""Reads checkpoints that PyTorch saved, without PyTorch and without running anything in them.

A checkpoint is a pickle and a number of storages, the flat arrays that its tensors are views of.
Files since PyTorch 1.6 are zip archives of both; older ones are a bare stream of pickles with the
storages after them.

A pickle is a program, so the one in the file never reaches `pickle`. `pickletools` decodes its
opcodes and the small interpreter of `torch_pickle` carries out those that build plain containers,
on an allow-list of globals. `pickle.Unpickler` with a guarded `find_class` would not do: its C code
dies on a deeply nested dictionary key and lets nine bytes claim gigabytes of memo, and its BUILD
sets attributes on whatever `find_class` admitted.
"""

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

from wasserstein_adv.errors import InputError
from wasserstein_adv.models.torch_pickle import interpret, require_plain
from wasserstein_adv.models.torch_storages import RefusedError, Storages, one_line

_STREAM_MAGIC = 0x1950A86A20F9469CFC6C
_STREAM_VERSION = 1001
_ZIP_PREFIX = b"PK\x03\x04"

# What malformed bytes can raise in the interpreter, in `zipfile` and in NumPy. `Warning` is for
# callers that turn warnings into errors: `pickletools` warns of odd escape sequences.
_MALFORMED = (
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    Warning,
    struct.error,
    zipfile.BadZipFile,
)


def read_torch_checkpoint(path: str | os.PathLike[str]) -> Any:
    """Read a file written by `torch.save`, in the zip format or the older stream.

    Nothing in the file is executed. Memory is claimed only for what the file's length can hold,
    a small multiple of it in all.

    Args:
      path: A checkpoint of containers, numbers, strings and CPU or CUDA tensors; where a tensor
          lived is ignored.

    Returns:
      The object saved. Dictionaries, `OrderedDict`s (with their `_metadata`), lists, tuples,
      strings, bytes, numbers, booleans and None are themselves. A tensor or parameter of
      shape `s` is a read-only NumPy array of shape `s` and the same element type, a view with
      the tensor's own strides, so that tensors that shared a storage still do. A `torch.Size`
      is a tuple of integers, a `torch.dtype` a `numpy.dtype`.

    Raises:
      InputError: There is no regular file at `path`, or it cannot be read; it is not a PyTorch
          checkpoint, or is truncated or damaged; its pickle names anything but containers,
          tensors, storages and element types.
    """
    data = _read_bytes(path)
    read = _read_archive if data.startswith(_ZIP_PREFIX) else _read_stream
    try:
        checkpoint = read(data)
        require_plain(checkpoint)
    except RefusedError as error:
        raise InputError(f"{path}: {error}") from error
    except _MALFORMED as error:
        raise InputError(
            f"{path}: the checkpoint is truncated or damaged ({one_line(error)})"
        ) from error
    return checkpoint


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the content of the regular file at `path`, at least one byte."""
    file = Path(path)
    try:
        # A pipe or a device could go on for ever.
        if not file.is_file():
            raise InputError(f"{path}: {'not a file' if file.exists() else 'no such file'}")
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not data:
        raise InputError(f"{path}: the file is empty")
    return data


def _read_archive(data: bytes) -> Any:
    """Return the object in a zip-format checkpoint: `<folder>/data.pkl` and its storages."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        pickles = [n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise RefusedError("not a PyTorch checkpoint: the zip archive has no one data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        order = "little"
        if f"{folder}byteorder" in names:
            order = _read_member(archive, f"{folder}byteorder").decode("ascii")
        storages = Storages(len(data))
        checkpoint = interpret(io.BytesIO(_read_member(archive, pickles[0])), storages)
        for key in storages.keys:
            storages.fill(key, _read_member(archive, f"{folder}data/{key}"), order)
    return checkpoint


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return one file of an archive; refuse one that is compressed, as it could swell."""
    try:
        member = archive.getinfo(name)
    except KeyError as error:
        raise RefusedError(f"the zip archive lacks {one_line(name)}") from error
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise RefusedError(f"{one_line(name)} is compressed in the zip archive")
    return archive.read(member)


def _read_stream(data: bytes) -> Any:
    """Return the object in an older checkpoint.

    The stream is five pickles (the magic number, the version, the writer's machine, the object,
    the storage keys), then for every key the number of elements as eight bytes and the elements,
    always little-endian. What follows is ignored, as PyTorch does.
    """
    stream = io.BytesIO(data)
    storages = Storages(len(data))
    try:
        magic = interpret(stream, None)
    except _MALFORMED:
        magic = None
    if type(magic) is not int or magic != _STREAM_MAGIC:
        raise RefusedError("not a PyTorch checkpoint: neither a zip archive nor the older stream")
    version = interpret(stream, None)
    if type(version) is not int or version != _STREAM_VERSION:
        raise RefusedError(f"the stream's version is not {_STREAM_VERSION}")
    if type(interpret(stream, None)) is not dict:
        raise RefusedError("the stream does not describe the machine that wrote it")
    checkpoint = interpret(stream, storages)
    keys = interpret(stream, None)
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise RefusedError("the stream does not list its storages")
    if len(set(keys)) != len(keys) or set(keys) != set(storages.keys):
        raise RefusedError("the storages listed are not those that the tensors use")
    for key in keys:
        (size,) = struct.unpack("<q", stream.read(8))
        if size != storages.size(key):
            raise RefusedError(f"storage {one_line(key)} does not have the size it claims")
        storages.fill(key, stream.read(storages.byte_size(key)), "little")
    return checkpoint
