"""Lowering graphs into dask task graphs and running them."""
