"""``truth.zarr``: what was simulated, appended block by block."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from .plan import Array, TruthArray

_CHUNK_BYTES = 4 << 20


class TruthWriter:
    """Appends arrays along their first dimension, in whole chunks, so that blocks leave no trace.

    Parameters
    ----------
    path : Path
        Of the zarr store to make.
    arrays : mapping of str to TruthArray
    """

    def __init__(self, path: Path, arrays: Mapping[str, TruthArray]) -> None:
        self._group = zarr.open_group(path, mode="w-", zarr_format=3)
        self._specs = arrays
        self._pending: dict[str, list[Array]] = {name: [] for name in arrays}
        self._total: dict[str, int] = {}
        self._chunk: dict[str, int] = {}
        for name, spec in arrays.items():
            item = int(np.dtype(spec.dtype).itemsize * np.prod(spec.item, dtype=np.int64))
            self._chunk[name] = max(1, _CHUNK_BYTES // item)
            self._create(name, spec, (0, *spec.item), (self._chunk[name], *spec.item))
            if spec.counts:
                self._pending[name].append(np.zeros(1, np.int64))
                self._total[name] = 0

    def _create(self, name: str, spec: TruthArray, shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
        self._group.create_array(
            name,
            shape=shape,
            chunks=chunks,
            dtype=spec.dtype,
            compressors=None,  # the bytes then depend on no library's version
            dimension_names=spec.dims,
            attributes={"units": spec.units, "long_name": spec.long_name},
        )

    def constant(self, name: str, spec: TruthArray, values: Array) -> None:
        """Write an array that does not grow."""
        self._create(name, spec, values.shape, values.shape)
        self._array(name)[...] = values

    def _array(self, name: str) -> "zarr.Array[Any]":
        array = self._group[name]
        assert isinstance(array, zarr.Array)
        return array

    def append(self, values: Mapping[str, Array]) -> None:
        """Append a block to every array."""
        for name, value in values.items():
            if self._specs[name].counts:
                value = self._total[name] + np.cumsum(value, dtype=np.int64)
                self._total[name] = int(value[-1]) if len(value) else self._total[name]
            self._pending[name].append(value)
            if sum(map(len, self._pending[name])) >= self._chunk[name]:
                self._write(name, whole=True)

    def _write(self, name: str, *, whole: bool) -> None:
        values = np.concatenate(self._pending[name])
        count = len(values) - len(values) % self._chunk[name] if whole else len(values)
        array = self._array(name)
        done = array.shape[0]
        array.resize((done + count, *array.shape[1:]))
        array[done : done + count] = values[:count]
        self._pending[name] = [values[count:].copy()]

    def close(self) -> None:
        """Write what is left of each array."""
        for name, pending in self._pending.items():
            if sum(map(len, pending)):
                self._write(name, whole=False)
