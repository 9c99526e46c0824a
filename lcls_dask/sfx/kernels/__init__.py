"""The compiled loops of serial crystallography: no xarray, no Dask."""
