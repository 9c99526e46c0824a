"""The compiled loops of time of flight: no xarray, no Dask."""
