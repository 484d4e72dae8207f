"""Is H-GKD worth it? Equal students, equal updates, equal fine-tuning, several seeds.

    python -m benchmarks.study run clothing10 --data clothing10-160 --out study
    python -m benchmarks.study report --out study

Every cell (data, arm, seed) writes one JSON file and is skipped when that file is there, so a study
can be stopped at any time and gone on with. The arms are in `arms.py`, the base recipes beside it,
the figures and what they mean in docs/lab-notebook.md.
"""
