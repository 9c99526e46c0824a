"""What compiled loops of all kinds are made with: no xarray, no Dask."""
