"""Does H-GKD help? Equal students, equal updates, equal fine-tuning, several seeds.

    python -m benchmarks.study run clothing10 --data clothing10-160 --out study
    python -m benchmarks.study report --out study

Every cell (data, arm, seed) writes one JSON file and is skipped if that file exists, so a study can
be stopped and resumed at any time. The arms are in `arms.py`, the base recipes next to it. The
results and their interpretation are in docs/lab-notebook.md.
"""
