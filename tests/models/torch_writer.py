"""Writes checkpoints as `torch.save` does, in both of its formats, without PyTorch.

Stand-ins for PyTorch's classes are pickled under PyTorch's names; `pickle` looks a global up before
it writes it, so they stand in `sys.modules` as long as that takes.
"""

import io
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np

STORAGE_NAMES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}


def _function(module: str, name: str) -> Any:
    function = types.FunctionType((lambda *arguments: None).__code__, {})
    function.__module__, function.__name__, function.__qualname__ = module, name, name
    return function


_STORAGE_TYPES = {n: type(n, (), {"__module__": "torch"}) for n in STORAGE_NAMES.values()}
_REBUILD_TENSOR = _function("torch._utils", "_rebuild_tensor")
_REBUILD_TENSOR_V2 = _function("torch._utils", "_rebuild_tensor_v2")
_REBUILD_PARAMETER = _function("torch._utils", "_rebuild_parameter")
_SIZE = type("Size", (), {"__module__": "torch"})


def _stub_modules() -> dict[str, types.ModuleType]:
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for stub in (*_STORAGE_TYPES.values(), _SIZE):
        setattr(torch, stub.__name__, stub)
    for stub in (_REBUILD_TENSOR, _REBUILD_TENSOR_V2, _REBUILD_PARAMETER):
        setattr(utils, stub.__name__, stub)
    torch._utils = utils
    return {"torch": torch, "torch._utils": utils}


@dataclass(eq=False)
class Storage:
    """A storage: flat elements, and what a pickle claims of them if that is not the truth."""

    elements: np.ndarray
    key: str
    claimed: int | None = None
    part: tuple[str, int, int] | None = None


@dataclass(eq=False)
class Tensor:
    """A tensor as PyTorch pickles it; strides count elements."""

    storage: Any
    offset: Any
    size: Any
    stride: Any

    def __reduce__(self):
        arguments = (self.storage, self.offset, self.size, self.stride, False, OrderedDict())
        return _REBUILD_TENSOR_V2, arguments


class OldTensor(Tensor):
    """A tensor as early PyTorch pickled it."""

    def __reduce__(self):
        return _REBUILD_TENSOR, (self.storage, self.offset, self.size, self.stride)


@dataclass(eq=False)
class Parameter:
    tensor: Any

    def __reduce__(self):
        return _REBUILD_PARAMETER, (self.tensor, True, OrderedDict())


@dataclass(eq=False)
class Size:
    sizes: Any

    def __reduce__(self):
        return _SIZE, (self.sizes,)


@dataclass(eq=False)
class Call:
    """Pickles as a call of `function`; the malicious checkpoints are made of these."""

    function: Any
    arguments: tuple

    def __reduce__(self):
        return self.function, self.arguments

    def __call__(self):
        """Only so that `pickle` takes a call for a function to call."""


def tensor(array: np.ndarray, key: str) -> Tensor:
    """A contiguous tensor with a storage of its own."""
    strides = tuple(step // array.itemsize for step in np.ascontiguousarray(array).strides)
    return Tensor(Storage(array.ravel(), key), 0, array.shape, strides[: array.ndim])


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, protocol: int, legacy: bool):
        super().__init__(file, protocol)
        self.legacy, self.storages = legacy, {}

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        self.storages[value.key] = value
        kind = _STORAGE_TYPES[STORAGE_NAMES[value.elements.dtype.name]]
        size = value.elements.size if value.claimed is None else value.claimed
        last = (value.part,) if self.legacy else ()
        return ("storage", kind, value.key, "cuda:0", size, *last)


def pickled(value: Any, protocol: int = 2, legacy: bool = True) -> tuple[bytes, dict[str, Storage]]:
    """The pickle of a checkpoint and its storages."""
    file = io.BytesIO()
    with mock.patch.dict(sys.modules, _stub_modules()):
        pickler = _Pickler(file, protocol, legacy)
        pickler.dump(value)
    return file.getvalue(), pickler.storages


def legacy_bytes(value: Any, protocol: int = 2, body: bytes | None = None) -> bytes:
    """A checkpoint as PyTorch before 1.6 wrote it; `body` replaces the object's pickle."""
    body, storages = pickled(value, protocol) if body is None else (body, {})
    parts = [pickle.dumps(part, protocol) for part in (MAGIC, 1001, SYSTEM)]
    parts += [body, pickle.dumps(sorted(storages), protocol)]
    for key in sorted(storages):
        elements = storages[key].elements
        parts.append(struct.pack("<q", elements.size))
        parts.append(elements.astype(elements.dtype.newbyteorder("<")).tobytes())
    return b"".join(parts)


def zip_bytes(
    value: Any,
    protocol: int = 2,
    body: bytes | None = None,
    *,
    folder: str = "archive",
    order: str | None = "little",
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """A checkpoint as PyTorch 1.6 and later write it; `body` replaces the object's pickle."""
    body, storages = pickled(value, protocol, legacy=False) if body is None else (body, {})
    mark = ">" if order == "big" else "<"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(f"{folder}/data.pkl", body)
        if order is not None:
            archive.writestr(f"{folder}/byteorder", order)
        for key, storage in storages.items():
            dtype = storage.elements.dtype.newbyteorder(mark)
            archive.writestr(f"{folder}/data/{key}", storage.elements.astype(dtype).tobytes())
        archive.writestr(f"{folder}/version", "3\n")
    return file.getvalue()


WRITERS = {"legacy": legacy_bytes, "zip": zip_bytes}
