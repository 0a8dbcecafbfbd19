"""Reads a checkpoint in PyTorch's format of before 1.6, without PyTorch.

The file is four pickles (magic number, protocol version, sizes of types, state), a fifth with the order of the
storages, and then per storage an element count and raw little-endian data.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
}


@dataclass(frozen=True)
class Storage:
    """A flat run of numbers that tensors are views of; its data comes after the pickles."""

    key: str
    dtype: type
    elements: int


@dataclass(frozen=True)
class View:
    """A tensor as pickled: where in which storage its elements lie."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def array(self, storages: dict[str, np.ndarray]) -> np.ndarray:
        flat = storages[self.storage.key][self.offset :]
        strides = [step * flat.itemsize for step in self.stride]
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides).copy()


class StateUnpickler(pickle.Unpickler):
    """Builds views and storages and refuses everything else: a checkpoint must not run code."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild_view
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        raise pickle.UnpicklingError(f"a checkpoint has no business with {module}.{name}")

    def persistent_load(self, reference: tuple) -> Storage:
        kind, dtype, key, _device, elements, *_ = reference
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown reference {kind}")
        return self.storages.setdefault(key, Storage(key, dtype, elements))


def rebuild_view(storage: Storage, offset: int, shape: tuple, stride: tuple, *_gradient: Any) -> View:
    return View(storage, offset, shape, stride)


def read(data: bytes) -> dict[str, np.ndarray]:
    """The state of a checkpoint: every weight by its name."""
    file = io.BytesIO(data)
    unpickler = StateUnpickler(file)
    load: Callable[[], Any] = unpickler.load
    if load() != MAGIC:
        raise ValueError("not a checkpoint of PyTorch's format before 1.6")
    load()  # protocol version
    load()  # byte order and sizes of types
    state, order = load(), load()
    storages = {key: read_storage(file, unpickler.storages[key]) for key in order}
    return {name: view.array(storages) for name, view in state.items()}


def read_storage(file: io.BytesIO, storage: Storage) -> np.ndarray:
    (elements,) = struct.unpack("<q", file.read(8))
    if elements != storage.elements:
        raise ValueError(f"storage {storage.key} holds {elements} elements, its tensors want {storage.elements}")
    return np.frombuffer(file.read(elements * np.dtype(storage.dtype).itemsize), storage.dtype)
