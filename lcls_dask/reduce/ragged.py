"""`Ragged`: rows of different lengths, as a Dask collection of one CSR Dataset for each block of events."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import DaskMethodsMixin, tokenize
from dask.delayed import Delayed, delayed
from dask.highlevelgraph import HighLevelGraph
from dask.threaded import get

from ..errors import ArgumentError, SelectionError

Array = np.ndarray[Any, np.dtype[Any]]

#: Dimensions that rows may have beside `event`.
BESIDE = ("channel", "segment")


class Ragged(DaskMethodsMixin):
    """Rows of different lengths: hits, or the windows that hits are found in; peaks, crystals.

    A block is an `xarray.Dataset` of consecutive events in compressed sparse rows (CSR). Rows are (event, channel) or
    (event, segment) in C order, or events alone. Row i of the flat variables is ``offset[i]:offset[i + 1]``; dimensions
    of offsets end in ``_edge``. Variables over events and channels are coordinates and go along. Nothing is computed
    before ``compute()``, which gives one such Dataset of all events.

    Parameters
    ----------
    graph : HighLevelGraph or mapping
        With one task for each block, of key ``(name, number)``.
    name : str
    events : sequence of int
        Events of each block.
    meta : xarray.Dataset
        A block without events.

    Examples
    --------
    >>> from lcls_dask.tof import find_hits
    >>> waveform = np.full(200, 2048.0)
    >>> waveform[100:103] -= [50, 100, 50]
    >>> hits = find_hits(waveform, threshold=30)
    >>> hits
    <Ragged of 1 event x 1 channel in 1 block: time [ns], amplitude [ADU], width [ns], saturated>
    >>> hits.compute()["amplitude"].values
    array([100.], dtype=float32)
    """

    def __init__(self, graph: Any, name: str, events: Sequence[int], meta: xr.Dataset) -> None:
        self._graph, self._name, self.events, self.meta = graph, name, tuple(events), meta

    @classmethod
    def from_blocks(cls, blocks: Sequence[Delayed], events: Sequence[int], meta: xr.Dataset) -> "Ragged":
        """Make one of delayed blocks.

        Parameters
        ----------
        blocks : sequence of Delayed
            Each gives a Dataset.
        events : sequence of int
            Of each block.
        meta : xarray.Dataset
            A block without events.

        Returns
        -------
        Ragged
        """
        name = f"ragged-{tokenize([block.key for block in blocks])}"
        layer: Any = {(name, i): block.key for i, block in enumerate(blocks)}
        return cls(HighLevelGraph.from_collections(name, layer, _collections(blocks)), name, events, meta)

    @classmethod
    def from_dataset(cls, dataset: xr.Dataset) -> "Ragged":
        """Make one block of what ``compute()`` gave.

        Its name is new each time: a Dataset that is given twice counts as two.

        Parameters
        ----------
        dataset : xarray.Dataset

        Returns
        -------
        Ragged
        """
        if "offset" not in dataset or dataset["offset"].dims != ("row_edge",):
            raise ArgumentError(
                "this Dataset is no ragged result: it has no variable offset (row_edge); "
                "of a run's digitizer node make one by lcls_dask.tof.windows"
            )
        name = f"ragged-{uuid4().hex}"  # not of the values: all memory would be read for it
        events = (dataset.sizes["row_edge"] - 1) // max(_beside(dataset)[1], 1)
        return cls({(name, 0): dataset}, name, (events,), empty_like(dataset))

    @property
    def channels(self) -> int:
        """How many channels or segments there are; 1 where rows are events alone."""
        return _beside(self.meta)[1]

    @property
    def name(self) -> str:
        """First part of the keys of the blocks' tasks, as of a Dask array."""
        return self._name

    @property
    def npartitions(self) -> int:
        """How many blocks there are."""
        return len(self.events)

    @property
    def blocks(self) -> list[Delayed]:
        """The blocks, one by one: each gives a Dataset."""
        make: Any = Delayed
        return [make(key, self._graph, layer=self._name) for key in self.__dask_keys__()]

    @property
    def spans(self) -> Iterator[slice]:
        """The events of each block, counted through."""
        stop = 0
        for count in self.events:
            start, stop = stop, stop + count
            yield slice(start, stop)

    def map_blocks(self, work: Callable[..., xr.Dataset], *arguments: Any) -> "Ragged":
        """Apply a function to every block.

        Parameters
        ----------
        work : callable
            Takes a Dataset and the arguments, gives another of the same events. It is called once with `meta`.
        *arguments : object
            The same for all blocks.

        Returns
        -------
        Ragged
        """
        name = f"{getattr(work, '__name__', 'ragged')}-{tokenize(self, work, *arguments)}"
        layer: Any = {(name, i): (_call, work, key, arguments) for i, key in enumerate(self.__dask_keys__())}
        graph = HighLevelGraph.from_collections(name, layer, _collections([self]))
        return Ragged(graph, name, self.events, empty_like(work(self.meta, *arguments)))

    def __getitem__(self, name: str) -> da.Array:
        """A flat variable as a Dask array, whose length is not known before it is computed."""
        if name not in self.meta.data_vars or name == "offset":
            known = ", ".join(str(known) for known in self.meta.data_vars if known != "offset")
            raise SelectionError(f"{name}: is not among the variables, which are {known}")
        like = self.meta[name]
        parts = [
            da.from_delayed(_column(block, name), (np.nan,) * like.ndim, like.dtype)  # type: ignore[no-untyped-call]
            for block in self.blocks
        ]
        return da.concatenate(parts, allow_unknown_chunksizes=True)  # type: ignore[no-any-return,no-untyped-call]

    def __len__(self) -> int:
        return sum(self.events)

    def __repr__(self) -> str:
        def several(count: int, what: str) -> str:
            return f"{count:,} {what}" + "s" * (count != 1)

        told = []
        for name, variable in self.meta.data_vars.items():
            if not any(str(dim).endswith("_edge") for dim in variable.dims):
                unit = variable.attrs.get("units", "1")
                told.append(f"{name} [{unit}]" if unit != "1" else str(name))
        dim, count = _beside(self.meta)
        shape = several(len(self), "event") + (f" x {several(count, dim)}" if dim else "")
        return f"<Ragged of {shape} in {several(self.npartitions, 'block')}: {', '.join(told)}>"

    def __dask_graph__(self) -> Any:
        return self._graph

    def __dask_keys__(self) -> list[tuple[str, int]]:
        return [(self._name, i) for i in range(len(self.events))]

    def __dask_layers__(self) -> tuple[str, ...]:
        return (self._name,)

    def __dask_tokenize__(self) -> str:
        return self._name

    __dask_scheduler__ = staticmethod(get)

    @staticmethod
    def __dask_optimize__(graph: Any, keys: Any, **_: Any) -> Any:
        whole = graph if isinstance(graph, HighLevelGraph) else HighLevelGraph.from_collections(str(id(graph)), graph)
        return whole.cull(set(_flat(keys)))

    def __dask_postcompute__(self) -> tuple[Callable[..., xr.Dataset], tuple[()]]:
        return concatenate, ()

    def __dask_postpersist__(self) -> tuple[Callable[..., "Ragged"], tuple[Any, ...]]:
        return _rebuild, (self._name, self.events, self.meta)


def _beside(block: xr.Dataset) -> tuple[str, int]:
    """The dimension that rows have beside `event`, and its size."""
    return next(((dim, block.sizes[dim]) for dim in BESIDE if dim in block.sizes), ("", 1))


def _collections(several: Sequence[Any]) -> Any:
    """Dask collections; its protocol is stricter in its types than what it uses."""
    return several


def _values(block: xr.Dataset, name: str) -> Array:
    return block[name].values


def _column(block: Delayed, name: str) -> Any:
    return delayed(_values, pure=True)(block, name)


def _call(work: Callable[..., xr.Dataset], block: xr.Dataset, arguments: tuple[Any, ...]) -> xr.Dataset:
    return work(block, *arguments)


def _rebuild(graph: Any, name: str, events: tuple[int, ...], meta: xr.Dataset, rename: Any = None) -> Ragged:
    return Ragged(graph, (rename or {}).get(name, name), events, meta)


def _flat(keys: Any) -> Iterator[Any]:
    for key in keys:
        if isinstance(key, list):
            yield from _flat(key)
        else:
            yield key


def as_ragged(rows: "Ragged | xr.Dataset") -> Ragged:
    """What an operation on ragged rows was given, as `Ragged`.

    Parameters
    ----------
    rows : Ragged or xarray.Dataset
        A Dataset is one that ``compute()`` gave.

    Returns
    -------
    Ragged

    Raises
    ------
    ArgumentError
        It is neither.
    """
    if isinstance(rows, Ragged):
        return rows
    if isinstance(rows, xr.Dataset):
        return Ragged.from_dataset(rows)
    raise ArgumentError(f"hits are a Ragged, or the Dataset that it computes to, not {type(rows).__name__}")


def rows_of(block: xr.Dataset) -> Array:
    """The row of each flat element.

    Parameters
    ----------
    block : xarray.Dataset
        With `offset`.

    Returns
    -------
    (n,) int64
        ``event * channels + channel``, segments likewise.
    """
    offset = block["offset"].values
    return np.repeat(np.arange(len(offset) - 1), np.diff(offset))


def select_events(block: xr.Dataset, events: Array) -> xr.Dataset:
    """Some events of a block whose rows have one flat dimension.

    Parameters
    ----------
    block : xarray.Dataset
        With `offset`, such as peaks or crystals.
    events : (n,) int
        Rising.

    Returns
    -------
    xarray.Dataset

    Examples
    --------
    >>> peaks = xr.Dataset({"offset": ("row_edge", [0, 2, 2, 5]), "fs": ("peak", np.arange(5))})
    >>> some = select_events(peaks, np.array([0, 2]))
    >>> some["offset"].values, some["fs"].values
    (array([0, 2, 5]), array([0, 1, 2, 3, 4]))
    """
    beside = _beside(block)[1]
    rows = (np.asarray(events, np.int64)[:, None] * beside + np.arange(beside)).ravel()
    edges = block["offset"].values
    count = np.diff(edges)[rows]
    chosen = np.zeros(len(edges) - 1, np.bool_)
    chosen[rows] = True
    of_rows = chosen[rows_of(block)]
    flat = {variable.dims[0]: of_rows for variable in block.drop_vars("offset").data_vars.values()}
    kept = block.drop_vars("offset").isel({"event": events} | flat, missing_dims="ignore")
    offset = np.concatenate([np.zeros(1, np.int64), np.cumsum(count, dtype=np.int64)])
    return kept.assign(offset=("row_edge", offset, block["offset"].attrs))


def _grows(dim: Hashable) -> bool:
    return dim not in (*BESIDE, "core", "particle_axis")


def concatenate(blocks: Iterable[xr.Dataset]) -> xr.Dataset:
    """One CSR Dataset of several, one behind the other.

    Parameters
    ----------
    blocks : iterable of xarray.Dataset
        With the same variables.

    Returns
    -------
    xarray.Dataset
    """
    parts = list(blocks)
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    made: dict[Hashable, xr.Variable] = {}
    for name, variable in first.variables.items():
        if variable.dims and _grows(variable.dims[0]):
            values = [part.variables[name].values for part in parts]
            joined = _join_edges(values) if str(variable.dims[0]).endswith("_edge") else np.concatenate(values)
            made[name] = xr.Variable(variable.dims, joined, variable.attrs)
        else:
            made[name] = variable
    return xr.Dataset(made, attrs=first.attrs).set_coords([str(name) for name in first.coords])


def _join_edges(edges: Sequence[Array]) -> Array:
    """Offsets of all blocks: each begins where the one before ends."""
    shifts = np.cumsum([0, *(int(edge[-1]) for edge in edges[:-1])])
    return np.concatenate([edges[0][:1], *(edge[1:] + shift for edge, shift in zip(edges, shifts, strict=True))])


def empty_like(block: xr.Dataset) -> xr.Dataset:
    """The same variables without events.

    Parameters
    ----------
    block : xarray.Dataset

    Returns
    -------
    xarray.Dataset
    """
    made: Mapping[Hashable, xr.Variable] = {
        name: xr.Variable(
            variable.dims,
            np.zeros(1, variable.dtype) if str(variable.dims[0]).endswith("_edge") else variable.values[:0],
            variable.attrs,
        )
        if variable.dims and _grows(variable.dims[0])
        else variable
        for name, variable in block.variables.items()
    }
    return xr.Dataset(made, attrs=block.attrs).set_coords([str(name) for name in block.coords])


def block_coordinates(coords: xr.Dataset) -> dict[Hashable, xr.Variable]:
    """Coordinates of a block, as variables for its result.

    Parameters
    ----------
    coords : xarray.Dataset

    Returns
    -------
    dict of str to xarray.Variable
    """
    return {name: variable.to_base_variable() for name, variable in coords.variables.items()}
