"""`python -m hgkd_edge`: the command line."""

from hgkd_edge.cli import main

main()
