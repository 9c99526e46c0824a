"""Labelled data: `Run`, `Experiment` and the xarray engine."""
