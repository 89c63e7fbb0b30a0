"""The storages of a PyTorch checkpoint: the flat arrays that its tensors are views of."""

from dataclasses import dataclass
from typing import Literal

import numpy as np


class RefusedError(Exception):
    """Something in a file that is recognised and not accepted; the message says what."""


@dataclass(frozen=True)
class StorageType:
    """What `torch.FloatStorage` and its like stand for: the type of a storage's elements."""

    dtype: np.dtype


@dataclass(frozen=True)
class Storage:
    """A flat run of elements that tensors view."""

    elements: np.ndarray


def one_line(text: object, limit: int = 120) -> str:
    """Return a text or an error's message on one printable line, its first `limit` characters.

    Of anything else, the type: what a hostile pickle builds can take for ever to spell out.
    """
    readable = isinstance(text, (str, BaseException))
    line = str(text)[:limit] if readable else f"<{type(text).__name__}>"
    return line if line.isprintable() else ascii(line)


class Storages:
    """The storages of one file, made when its pickle names them and filled afterwards."""

    def __init__(self, limit: int):
        """Start with none; all of them together may claim `limit` bytes."""
        self._storages: dict[str, Storage] = {}
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

    def claim(self, key: str, dtype: np.dtype, size: int) -> Storage:
        """Return the storage `key` of `size` elements, zeros until it is filled."""
        known = self._storages.get(key)
        if known is not None:
            if known.elements.dtype != dtype or known.elements.size != size:
                raise RefusedError(f"storage {one_line(key)} has two types or sizes")
            return known
        if size * dtype.itemsize > self._left:
            raise RefusedError(
                f"truncated or damaged: storage {one_line(key)} claims more than the file holds"
            )
        self._left -= size * dtype.itemsize
        self._storages[key] = Storage(np.zeros(size, dtype))
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
            raise RefusedError(
                f"truncated or damaged: storage {one_line(key)} has {len(raw)} bytes, "
                f"not {elements.nbytes}"
            )
        if order not in ("little", "big"):
            raise RefusedError(f"unknown byte order {one_line(order)}")
        if elements.dtype == np.bool_:
            # A byte other than 0 and 1 would make an invalid boolean.
            elements[:] = np.frombuffer(raw, np.uint8) != 0
        else:
            mark: Literal["<", ">"] = "<" if order == "little" else ">"
            elements[:] = np.frombuffer(raw, elements.dtype.newbyteorder(mark))
