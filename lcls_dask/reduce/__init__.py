"""Reductions over events: described once, done by NumPy, by a Dask tree, or piece by piece while a run is taken."""
