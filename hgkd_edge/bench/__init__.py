"""Reproducible latency measurements: on this machine, on a Jetson, or over SSH.

    options.py       what one call asks for; run.py chooses between local, edge and fleet
    models.py        which files are measured (ONNX, or what export made of it), and what they are
    inputs.py        what is fed to them (real images, or a fixed-seed tensor)
    verification.py  compares outputs with the ONNX file's before timing
    method.py        warm-up until stable, then interleaved rounds
    local.py         all of that on this machine, with the runtimes of `exporters` (runners.py)
    edge/            Jetson facts, trtexec, tegrastats, the script that is sent over SSH
    stats.py         percentiles, bootstrap interval, noise
    session.py       raw times -> records.py, what bench.json holds
    compare.py       recorded sessions against each other and against the files of today
    tables.py        what the terminal shows
    devices.py       the table of devices, with sources (devices.yaml)
    estimate.py      roofline, for unavailable devices; never shown as a measurement

Nothing here imports torch unless a torch runner is asked for.
"""
