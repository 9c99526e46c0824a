"""A run's bytes for any zarr reader: a zarr v3 store and an fsspec filesystem over the same keys."""
