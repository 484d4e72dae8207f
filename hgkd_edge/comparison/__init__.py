"""What to deploy: every exported file in every runtime, with its score, speed and size.

    artifacts.py       the unchanged exported files of a run
    scores.py          recorded scores, each with its file's digest and its images
    missing_scores.py  scores without a record, on the held-out images (needs torch)
    rows.py            the rows, in groups that can be compared
    compare_runs.py    makes the rows: what was scored and timed, by device
    verdict.py         the Pareto front, and warnings
    measuring.py       `bench` for cases not yet measured on this machine
    view.py            tables for a terminal, and the plot

Files, scores and times are matched by the digest of the network: figures of a file that has changed
since are not used.
"""
