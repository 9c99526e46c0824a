"""Speed and memory of lcls_dask against named peers and physical limits: ``python -m benchmarks`` lists them."""
