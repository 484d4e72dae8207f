"""`python -m hgkd_edge.cli`, which torchrun and `accelerate launch` start too."""

from hgkd_edge.cli import main

main()
