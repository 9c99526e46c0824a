"""`lcls-dask demo`: two simulated runs, or any real one, reduced on Dask and laid out on a page."""
