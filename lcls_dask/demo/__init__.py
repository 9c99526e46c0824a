"""`lcls-dask demo`: two simulated runs, served, reduced on Dask and attacked, or any real one; laid out on a page."""
