"""What tests have workers do. Jobs import it, so that it has a module of its own; `PATH` is a line of their script."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PATH = f"export PYTHONPATH={Path(__file__).parent}"


def slowly(work: Callable[[Any], Any], part: Any, seconds: float) -> Any:
    """So that there is a middle, on any machine."""
    time.sleep(seconds)
    return work(part)


@dataclass(frozen=True)
class HitsByTime:
    """Counts the hits of a run's events from the first to behind the last: (channel, time)."""

    path: str
    snapshot: str
    baseline: np.ndarray[Any, Any]

    def __call__(self, part: tuple[int, int]) -> np.ndarray[Any, Any]:
        import lcls_dask
        from lcls_dask import tof

        run = lcls_dask.open_run(self.path, snapshot=self.snapshot)
        node = run.dataset(group="/hsd", chunks=None, events=slice(*part))
        hits = tof.find_hits(node, threshold=60, baseline=self.baseline)
        return np.asarray(tof.tof_spectrum(hits, np.arange(401)).compute(scheduler="synchronous"))


@dataclass(frozen=True)
class PhotonsByRow:
    """Sums a run's frames from the first to behind the last: (segment, row) of their powder pattern."""

    path: str
    snapshot: str

    def __call__(self, part: tuple[int, int]) -> np.ndarray[Any, Any]:
        import lcls_dask
        from lcls_dask import sfx

        run = lcls_dask.open_run(self.path, snapshot=self.snapshot)
        frames = run.dataset("jungfrau.raw.*", chunks=None, events=slice(*part))["jungfrau.raw.raw"]
        powder = sfx.powder(frames & 0x3FFF).compute(scheduler="synchronous")
        return np.asarray(powder["sum"]).sum(axis=-1)


def recorded(path: Path, number: int, seconds: float) -> int:
    """Something whose every run is on record."""
    time.sleep(seconds)
    with open(path, "a") as file:
        file.write(f"{number}\n")
    return number**2


def keys_and_tokens(identity: Path) -> list[str]:
    """The secret part of each key and token in an identity's directory."""
    found = [key.read_text().splitlines()[1] for key in identity.glob("*.key")]
    if (identity / "token").exists():
        found.append((identity / "token").read_text())
    return found


def tell_secrets(answer: str) -> int:
    """What a worker holds, on disk and in memory, written where the test alone looks for it."""
    from lcls_dask.formats.remote.credentials import credentials

    held = keys_and_tokens(Path(os.environ["CERTIFIED_CONFIG"]))
    token = credentials().current().token
    assert token is not None
    Path(answer).write_text(json.dumps([*held, token]))
    return len(held)
