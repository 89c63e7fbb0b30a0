"""Carries out the pickle of a PyTorch checkpoint, on an allow-list: see `torch_checkpoint`."""

import io
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from wasserstein_adv.models.torch_storages import (
    RefusedError,
    Storage,
    Storages,
    StorageType,
    one_line,
)


@dataclass(frozen=True)
class _Function:
    """A callable that a pickle may apply. It is ours, whatever the file's name for it."""

    apply: Callable[..., Any]


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
        raise RefusedError("an OrderedDict is made of something other than pairs")
    return OrderedDict((_checked_key(key), value) for key, value in pairs)


def _size(*arguments: Any) -> tuple[int, ...]:
    """Stand in for `torch.Size(tuple)`."""
    (sizes,) = arguments
    if not _is_naturals(sizes):
        raise RefusedError("a torch.Size is not made of sizes")
    return sizes


def _rebuild_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, *_gradient_and_hooks: Any
) -> np.ndarray:
    """Stand in for `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`.

    Args:
      storage: The `Storage` that the tensor views.
      offset: The storage's element that is the tensor's first.
      size: The tensor's shape, `s`.
      stride: For every axis the number of elements from one entry to the next.

    Returns:
      A read-only view of the storage, of shape `s`.
    """
    if (
        not isinstance(storage, Storage)
        or not _is_natural(offset)
        or not _is_naturals(size)
        or not _is_naturals(stride)
        or len(size) != len(stride)
    ):
        raise RefusedError("a tensor is not described by a storage, an offset, sizes and strides")
    elements = storage.elements
    if 0 in size:
        view = np.zeros(size, elements.dtype)
    else:
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= elements.size:
            raise RefusedError("a tensor reaches beyond its storage")
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
        raise RefusedError("a parameter is not made of a tensor")
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
    **{("torch", name): StorageType(np.dtype(t)) for name, t in _STORAGE_TYPES.items()},
    **{("torch", name): np.dtype(t) for name, t in _TYPES.items()},
}


def _admitted(module: object, name: object) -> Any:
    """Return what the global `module.name` means, or refuse it by name."""
    if type(module) is not str or type(name) is not str or (module, name) not in _GLOBALS:
        raise RefusedError(
            f"refused: its pickle names {one_line(module)}.{one_line(name)}, which is not "
            "part of a checkpoint of tensors; nothing was executed"
        )
    return _GLOBALS[module, name]


# The interpreter ----------------------------------------------------------------------------------


def _checked_key(key: Any) -> Any:
    """Return a dictionary key of a plain type; hashing a nest of tuples could take for ever."""
    if key is not None and type(key) not in (str, bytes, int, float, bool):
        raise RefusedError("a dictionary has a key that is neither a string nor a number")
    return key


class _Machine:
    """The state in which one pickle is interpreted."""

    def __init__(self, storages: Storages | None):
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
            raise RefusedError("its pickle sets attributes other than a state dict's _metadata")
        target._metadata = state["_metadata"]  # type: ignore[attr-defined]  # as PyTorch has it

    def load_storage(self) -> None:
        """Replace a reference to a storage by the storage.

        The reference is `("storage", type, key, location, size)`. In the older stream there is
        one item more, None or `(key, offset, size)` of the part that is meant.
        """
        (reference,) = self.last(1)
        if self.storages is None or type(reference) is not tuple or len(reference) not in (5, 6):
            raise RefusedError("its pickle refers to something other than a storage")
        tag, kind, key, _location, size, *rest = reference
        if (
            type(tag) is not str
            or tag != "storage"
            or not isinstance(kind, StorageType)
            or type(key) is not str
            or not _is_natural(size)
        ):
            raise RefusedError("its pickle refers to something other than a storage")
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


def _part(storage: Storage, part: Any) -> Storage:
    """Return the part `(key, offset, size)` of a storage, sharing its elements."""
    _key, offset, size = part
    if not _is_natural(offset) or not _is_natural(size) or offset + size > storage.elements.size:
        raise RefusedError("a part of a storage reaches beyond it")
    return Storage(storage.elements[offset : offset + size])


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


def interpret(stream: io.BytesIO, storages: Storages | None) -> Any:
    """Return the object of the pickle at the stream's position and leave the stream after it."""
    return _Machine(storages).run(stream)


def require_plain(checkpoint: Any) -> None:
    """Refuse an object with anything in it that means something to PyTorch only."""
    pending, seen = [checkpoint], set()
    while pending:
        value = pending.pop()
        if isinstance(value, (Storage, StorageType, _Function)):
            raise RefusedError("it holds a bare storage, storage type or function, not a tensor")
        if isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(value.values() if isinstance(value, dict) else value)
            if isinstance(value, OrderedDict):
                pending.append(getattr(value, "_metadata", None))
