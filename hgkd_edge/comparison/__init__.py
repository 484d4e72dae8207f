"""What to deploy: every exported file in every runtime, with its score, speed and size.

    artefacts.py  the files of a run that are still those that were exported
    scores.py     scores that were recorded, each with its file's digest and its images
    judge.py      scores that nobody recorded, on the held-out images (needs torch)
    table.py      rows by device, the Pareto front, warnings
    measuring.py  `bench` for what was not measured on this machine
    view.py       tables for a terminal, and the plot

Files, scores and times meet by the digest of the network: a figure of a file that has changed
since belongs to no row.
"""
