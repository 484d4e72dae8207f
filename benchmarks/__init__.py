"""Measurements and studies: each module is one command, `python -m benchmarks.NAME --help`."""
