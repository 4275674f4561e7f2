"""From archive to page: plan, ingest, extract, fit, report. Zarr, xarray and Dask; never Prefect."""
