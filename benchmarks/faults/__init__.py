"""Real faults while every command works: `python -m benchmarks.faults`."""
