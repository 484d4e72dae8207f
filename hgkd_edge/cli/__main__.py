"""`python -m hgkd_edge.cli`: the same as `python -m hgkd_edge`."""

from hgkd_edge.cli import main

main()
