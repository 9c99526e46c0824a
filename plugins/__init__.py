"""What Dask processes load by ``--preload``, installed as `lcls_dask.plugins`: a page each, nothing else."""
