"""Reads checkpoints that PyTorch saved, without PyTorch and without running anything in them.

A checkpoint is a pickle and a number of storages, the flat arrays that its tensors are views of.
Files since PyTorch 1.6 are zip archives of both; older ones are a bare stream of pickles with the
storages after them.

A pickle is a program, so the one in the file never reaches `pickle`. `pickletools` decodes its
opcodes and the small interpreter below carries out those that build plain containers, on an
allow-list of globals. `pickle.Unpickler` with a guarded `find_class` would not do: its C code
dies on a deeply nested dictionary key and lets nine bytes claim gigabytes of memo, and its BUILD
sets attributes on whatever `find_class` admitted.
"""

import io
import os
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wasserstein_adv.errors import InputError

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


class _RefusedError(Exception):
    """Something in a file that is recognised and not accepted; the message says what."""


@dataclass(frozen=True)
class _StorageType:
    """What `torch.FloatStorage` and its like stand for: the type of a storage's elements."""

    dtype: np.dtype


@dataclass(frozen=True)
class _Storage:
    """A flat run of elements that tensors view."""

    elements: np.ndarray


@dataclass(frozen=True)
class _Function:
    """A callable that a pickle may apply. It is ours, whatever the file's name for it."""

    apply: Callable[..., Any]


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
        _require_plain(checkpoint)
    except _RefusedError as error:
        raise InputError(f"{path}: {error}") from error
    except _MALFORMED as error:
        raise InputError(
            f"{path}: the checkpoint is truncated or damaged ({_one_line(error)})"
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


def _one_line(text: object, limit: int = 120) -> str:
    """Return a text or an error's message on one printable line, its first `limit` characters.

    Of anything else, the type: what a hostile pickle builds can take for ever to spell out.
    """
    readable = isinstance(text, (str, BaseException))
    line = str(text)[:limit] if readable else f"<{type(text).__name__}>"
    return line if line.isprintable() else ascii(line)


# The two formats ----------------------------------------------------------------------------------


def _read_archive(data: bytes) -> Any:
    """Return the object in a zip-format checkpoint: `<folder>/data.pkl` and its storages."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        pickles = [n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _RefusedError("not a PyTorch checkpoint: the zip archive has no one data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        order = "little"
        if f"{folder}byteorder" in names:
            order = _read_member(archive, f"{folder}byteorder").decode("ascii")
        storages = _Storages(len(data))
        checkpoint = _interpret(io.BytesIO(_read_member(archive, pickles[0])), storages)
        for key in storages.keys:
            storages.fill(key, _read_member(archive, f"{folder}data/{key}"), order)
    return checkpoint


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return one file of an archive; refuse one that is compressed, as it could swell."""
    try:
        member = archive.getinfo(name)
    except KeyError as error:
        raise _RefusedError(f"the zip archive lacks {_one_line(name)}") from error
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise _RefusedError(f"{_one_line(name)} is compressed in the zip archive")
    return archive.read(member)


def _read_stream(data: bytes) -> Any:
    """Return the object in an older checkpoint.

    The stream is five pickles (the magic number, the version, the writer's machine, the object,
    the storage keys), then for every key the number of elements as eight bytes and the elements,
    always little-endian. What follows is ignored, as PyTorch does.
    """
    stream = io.BytesIO(data)
    storages = _Storages(len(data))
    try:
        magic = _interpret(stream, None)
    except _MALFORMED:
        magic = None
    if type(magic) is not int or magic != _STREAM_MAGIC:
        raise _RefusedError("not a PyTorch checkpoint: neither a zip archive nor the older stream")
    version = _interpret(stream, None)
    if type(version) is not int or version != _STREAM_VERSION:
        raise _RefusedError(f"the stream's version is not {_STREAM_VERSION}")
    if type(_interpret(stream, None)) is not dict:
        raise _RefusedError("the stream does not describe the machine that wrote it")
    checkpoint = _interpret(stream, storages)
    keys = _interpret(stream, None)
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise _RefusedError("the stream does not list its storages")
    if len(set(keys)) != len(keys) or set(keys) != set(storages.keys):
        raise _RefusedError("the storages listed are not those that the tensors use")
    for key in keys:
        (size,) = struct.unpack("<q", stream.read(8))
        if size != storages.size(key):
            raise _RefusedError(f"storage {_one_line(key)} does not have the size it claims")
        storages.fill(key, stream.read(storages.byte_size(key)), "little")
    return checkpoint


class _Storages:
    """The storages of one file, made when its pickle names them and filled afterwards."""

    def __init__(self, limit: int):
        """Start with none; all of them together may claim `limit` bytes."""
        self._storages: dict[str, _Storage] = {}
        self._left = limit

    @property
    def keys(self) -> list[str]:
        """The keys claimed, in the order of their first claims."""
        return list(self._storages)

    def size(self, key: str) -> int:
        """Return the number of elements of a storage."""
        return self._storages[key].elements.size

    def byte_size(self, key: str) -> int:
        """Return the number of bytes of a storage."""
        return self._storages[key].elements.nbytes

    def claim(self, key: str, dtype: np.dtype, size: int) -> _Storage:
        """Return the storage `key` of `size` elements, zeros until it is filled."""
        known = self._storages.get(key)
        if known is not None:
            if known.elements.dtype != dtype or known.elements.size != size:
                raise _RefusedError(f"storage {_one_line(key)} has two types or sizes")
            return known
        if size * dtype.itemsize > self._left:
            raise _RefusedError(
                f"truncated or damaged: storage {_one_line(key)} claims more than the file holds"
            )
        self._left -= size * dtype.itemsize
        self._storages[key] = _Storage(np.zeros(size, dtype))
        return self._storages[key]

    def fill(self, key: str, raw: bytes, order: str) -> None:
        """Put the elements encoded in `raw` into a storage that was claimed.

        Args:
          key: The storage's.
          raw: All of its bytes.
          order: Their order, `"little"` or `"big"`.
        """
        elements = self._storages[key].elements
        if len(raw) != elements.nbytes:
            raise _RefusedError(
                f"truncated or damaged: storage {_one_line(key)} has {len(raw)} bytes, "
                f"not {elements.nbytes}"
            )
        if order not in ("little", "big"):
            raise _RefusedError(f"unknown byte order {_one_line(order)}")
        if elements.dtype == np.bool_:
            # A byte other than 0 and 1 would make an invalid boolean.
            elements[:] = np.frombuffer(raw, np.uint8) != 0
        else:
            mark: Literal["<", ">"] = "<" if order == "little" else ">"
            elements[:] = np.frombuffer(raw, elements.dtype.newbyteorder(mark))


# What a pickle may name ---------------------------------------------------------------------------


def _is_natural(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_naturals(value: object) -> bool:
    return type(value) is tuple and all(_is_natural(v) for v in value)


def _ordered_dict(*arguments: Any) -> OrderedDict[Any, Any]:
    """Stand in for `OrderedDict()` and, from Python 2, `OrderedDict([[key, value], ...])`."""
    if not arguments:
        return OrderedDict()
    (pairs,) = arguments
    if type(pairs) is not list or not all(type(p) in (list, tuple) for p in pairs):
        raise _RefusedError("an OrderedDict is made of something other than pairs")
    return OrderedDict((_checked_key(key), value) for key, value in pairs)


def _size(*arguments: Any) -> tuple[int, ...]:
    """Stand in for `torch.Size(tuple)`."""
    (sizes,) = arguments
    if not _is_naturals(sizes):
        raise _RefusedError("a torch.Size is not made of sizes")
    return sizes


def _rebuild_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, *_gradient_and_hooks: Any
) -> np.ndarray:
    """Stand in for `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`.

    Args:
      storage: The `_Storage` that the tensor views.
      offset: The storage's element that is the tensor's first.
      size: The tensor's shape, `s`.
      stride: For every axis the number of elements from one entry to the next.

    Returns:
      A read-only view of the storage, of shape `s`.
    """
    if (
        not isinstance(storage, _Storage)
        or not _is_natural(offset)
        or not _is_naturals(size)
        or not _is_naturals(stride)
        or len(size) != len(stride)
    ):
        raise _RefusedError("a tensor is not described by a storage, an offset, sizes and strides")
    elements = storage.elements
    if 0 in size:
        view = np.zeros(size, elements.dtype)
    else:
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= elements.size:
            raise _RefusedError("a tensor reaches beyond its storage")
        view = np.ndarray(
            size,
            elements.dtype,
            buffer=elements,
            offset=offset * elements.itemsize,
            strides=tuple(step * elements.itemsize for step in stride),
        )
    view.flags.writeable = False
    return view


def _rebuild_parameter(data: Any, *_gradient_and_hooks: Any) -> np.ndarray:
    """Stand in for `torch._utils._rebuild_parameter`: return the parameter's tensor."""
    if not isinstance(data, np.ndarray):
        raise _RefusedError("a parameter is not made of a tensor")
    return data


_STORAGE_TYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_TYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
}
# (module, name), as the file has them, and what each means here. Nothing is imported.
_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Function(_ordered_dict),
    ("torch", "Size"): _Function(_size),
    ("torch._utils", "_rebuild_tensor"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_rebuild_parameter),
    **{("torch", name): _StorageType(np.dtype(t)) for name, t in _STORAGE_TYPES.items()},
    **{("torch", name): np.dtype(t) for name, t in _TYPES.items()},
}


def _admitted(module: object, name: object) -> Any:
    """Return what the global `module.name` means, or refuse it by name."""
    if type(module) is not str or type(name) is not str or (module, name) not in _GLOBALS:
        raise _RefusedError(
            f"refused: its pickle names {_one_line(module)}.{_one_line(name)}, which is not "
            "part of a checkpoint of tensors; nothing was executed"
        )
    return _GLOBALS[module, name]


# The interpreter ----------------------------------------------------------------------------------


def _checked_key(key: Any) -> Any:
    """Return a dictionary key of a plain type; hashing a nest of tuples could take for ever."""
    if key is not None and type(key) not in (str, bytes, int, float, bool):
        raise _RefusedError("a dictionary has a key that is neither a string nor a number")
    return key


class _Machine:
    """The state in which one pickle is interpreted."""

    def __init__(self, storages: _Storages | None):
        """Start empty. Without `storages` the pickle may not refer to any."""
        self.storages = storages
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def push_global(self, names: str) -> None:
        """Put on the stack what a `module name` line means."""
        self.push(_admitted(*names.split(" ", 1)))

    def instantiate(self, names: str) -> None:
        """Refuse a `module name` line to be called at once, which no checkpoint has."""
        _admitted(*names.split(" ", 1))
        raise TypeError("the pickle instantiates a class")

    def push_stack_global(self) -> None:
        """Replace the module and name on the stack by what they mean."""
        name = self.stack.pop()
        self.push(_admitted(self.stack.pop(), name))

    def mark(self) -> None:
        """Begin a group of values."""
        self.below.append(self.stack)
        self.stack = []

    def group(self) -> list[Any]:
        """Take the values since the last mark off the stack."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def last(self, count: int) -> list[Any]:
        """Take `count` values off the stack."""
        if count > len(self.stack):
            raise IndexError("the pickle's stack is empty")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def extend(self, values: list[Any]) -> None:
        """Append values to the list on top of the stack."""
        if type(self.stack[-1]) is not list:
            raise TypeError("the pickle appends to something other than a list")
        self.stack[-1].extend(values)

    def update(self, values: list[Any]) -> None:
        """Put alternating keys and values into the dictionary on top of the stack."""
        if type(self.stack[-1]) not in (dict, OrderedDict):
            raise TypeError("the pickle sets items of something other than a dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            self.stack[-1][_checked_key(key)] = value

    def reduce(self) -> None:
        """Replace an admitted function and its arguments by its result."""
        function, arguments = self.last(2)
        if not isinstance(function, _Function) or type(arguments) is not tuple:
            raise TypeError("the pickle calls something other than a function")
        self.push(function.apply(*arguments))

    def build(self) -> None:
        """Set the attribute that state dictionaries have, and no other on anything else."""
        (state,) = self.last(1)
        target = self.stack[-1]
        if type(target) is not OrderedDict or type(state) is not dict or [*state] != ["_metadata"]:
            raise _RefusedError("its pickle sets attributes other than a state dict's _metadata")
        target._metadata = state["_metadata"]  # type: ignore[attr-defined]  # as PyTorch has it

    def load_storage(self) -> None:
        """Replace a reference to a storage by the storage.

        The reference is `("storage", type, key, location, size)`. In the older stream there is
        one item more, None or `(key, offset, size)` of the part that is meant.
        """
        (reference,) = self.last(1)
        if self.storages is None or type(reference) is not tuple or len(reference) not in (5, 6):
            raise _RefusedError("its pickle refers to something other than a storage")
        tag, kind, key, _location, size, *rest = reference
        if (
            type(tag) is not str
            or tag != "storage"
            or not isinstance(kind, _StorageType)
            or type(key) is not str
            or not _is_natural(size)
        ):
            raise _RefusedError("its pickle refers to something other than a storage")
        storage = self.storages.claim(key, kind.dtype, size)
        part = rest[0] if rest else None
        self.push(storage if part is None else _part(storage, part))

    def run(self, stream: io.BytesIO) -> Any:
        """Carry out the pickle at the stream's position and leave the stream after it."""
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                break
            if opcode.name in _WITH_ARGUMENT:
                _WITH_ARGUMENT[opcode.name](self, argument)
            elif opcode.name in _WITHOUT_ARGUMENT:
                _WITHOUT_ARGUMENT[opcode.name](self)
            else:
                raise ValueError(f"its pickle uses the opcode {opcode.name}")
        return self.stack.pop()

    def put(self, index: int) -> None:
        """Remember the top of the stack."""
        self.memo[index] = self.stack[-1]


def _part(storage: _Storage, part: Any) -> _Storage:
    """Return the part `(key, offset, size)` of a storage, sharing its elements."""
    _key, offset, size = part
    if not _is_natural(offset) or not _is_natural(size) or offset + size > storage.elements.size:
        raise _RefusedError("a part of a storage reaches beyond it")
    return _Storage(storage.elements[offset : offset + size])


# The opcodes that PyTorch's picklers write, protocols 2 to 5, and INST for the sake of its message.
# Left out, among others: those that instantiate classes or consult the registry of extensions.
_WITH_ARGUMENT: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(
        [
            *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
            *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
            *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        ],
        _Machine.push,
    ),
    "PROTO": lambda machine, version: None,
    "FRAME": lambda machine, length: None,
    "GLOBAL": _Machine.push_global,
    "INST": _Machine.instantiate,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.push(machine.memo[index]),
}
_WITHOUT_ARGUMENT: dict[str, Callable[[_Machine], None]] = {
    "NONE": lambda machine: machine.push(None),
    "NEWTRUE": lambda machine: machine.push(True),
    "NEWFALSE": lambda machine: machine.push(False),
    "EMPTY_TUPLE": lambda machine: machine.push(()),
    "EMPTY_LIST": lambda machine: machine.push([]),
    "EMPTY_DICT": lambda machine: machine.push({}),
    "TUPLE1": lambda machine: machine.push(tuple(machine.last(1))),
    "TUPLE2": lambda machine: machine.push(tuple(machine.last(2))),
    "TUPLE3": lambda machine: machine.push(tuple(machine.last(3))),
    "MARK": _Machine.mark,
    "TUPLE": lambda machine: machine.push(tuple(machine.group())),
    "APPEND": lambda machine: machine.extend(machine.last(1)),
    "APPENDS": lambda machine: machine.extend(machine.group()),
    "SETITEM": lambda machine: machine.update(machine.last(2)),
    "SETITEMS": lambda machine: machine.update(machine.group()),
    "MEMOIZE": lambda machine: machine.put(len(machine.memo)),
    "STACK_GLOBAL": _Machine.push_stack_global,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.load_storage,
}


def _interpret(stream: io.BytesIO, storages: _Storages | None) -> Any:
    """Return the object of the pickle at the stream's position and leave the stream after it."""
    return _Machine(storages).run(stream)


def _require_plain(checkpoint: Any) -> None:
    """Refuse an object with anything in it that means something to PyTorch only."""
    pending, seen = [checkpoint], set()
    while pending:
        value = pending.pop()
        if isinstance(value, (_Storage, _StorageType, _Function)):
            raise _RefusedError("it holds a bare storage, storage type or function, not a tensor")
        if isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(value.values() if isinstance(value, dict) else value)
            if isinstance(value, OrderedDict):
                pending.append(getattr(value, "_metadata", None))
