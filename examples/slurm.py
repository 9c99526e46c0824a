#!/usr/bin/env python
"""Two runs reduced on Slurm jobs: a time-of-flight spectrum and a powder pattern. Copy it, and change the middle.

    python slurm.py lcls://tmox42619/r0014 lcls://cxil1015/r0020 --queue milano --account lcls:tmox42619

Where runs are read from, and who you are, is said in ~/.config/dask/lcls.yaml or in the environment:

    lcls:
      gateway: https://gateway.example.org:4443
      issuer: https://issuer.example.org:4433
      cluster:
        directory: ~/clusters        # the nodes must see it
"""

import argparse

import dask.array as da
import numpy as np
import xarray as xr

import lcls_dask


def spectrum(uri: str) -> "da.Array":
    """Windows of the digitizer by their time: counts in bins of 1 ns. Lazy."""
    run = lcls_dask.open_run(uri)
    hsd = xr.open_dataset(uri, engine="lcls", group="/hsd", snapshot=run.snapshot, chunks={})
    counts, _ = da.histogram(hsd["hsd.raw.windows.time"].data * 1e9, bins=500, range=(0, 500))
    return counts


def powder(uri: str) -> xr.DataArray:
    """Sum of all frames, without the gain bits. Lazy; one segment of the detector is one plane of it."""
    frames = lcls_dask.open_run(uri).dataset("jungfrau.raw.raw")["jungfrau.raw.raw"]
    return (frames & 0x3FFF).sum("event", dtype=np.uint64)


def main() -> None:
    """Start the cluster, reduce both runs on it, save the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tof")
    parser.add_argument("sfx")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", default="reduced.npz")
    # the rest is for Slurm, and goes to dask_jobqueue.SLURMCluster as it is
    for option in ("queue", "account", "memory", "walltime", "interface", "log-directory"):
        parser.add_argument(f"--{option}")
    parser.add_argument("--cores", type=int)
    arguments = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    tof, sfx, out = arguments.pop("tof"), arguments.pop("sfx"), arguments.pop("out")
    workers = arguments.pop("workers")

    # adapt= in place of workers= also replaces jobs that end or are killed
    with lcls_dask.connect("slurm", adapt=(workers, 2 * workers), processes=1, **arguments) as client:
        print(client.dashboard_link)
        counts, total = client.gather(client.compute([spectrum(tof), powder(sfx)]))
    np.savez(out, spectrum=counts, powder=total.values)
    print(f"{counts.sum()} windows, {int(total.sum())} ADU: {out}")


if __name__ == "__main__":
    main()
