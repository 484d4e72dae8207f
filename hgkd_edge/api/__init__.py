"""The Python API, which the command line calls too. Its names are those of `hgkd_edge`."""
