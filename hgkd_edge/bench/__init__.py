"""Reproducible latency measurements: on this machine, on a Jetson, or over SSH.

    options.py       what one call asks for; run.py chooses between local, edge and fleet
    models.py        which files are measured (ONNX, or what export made of it), and what they are
    inputs.py        what is fed to them, and the outputs that they must give
    timing.py        warm-up until stable, then interleaved rounds
    local.py         all of that on this machine, with the runtimes of `exporters`
    edge/            all of that on a device: Jetson facts, trtexec, tegrastats, SSH
    statistics.py    raw times -> percentiles, interval of the mean, noise, ratios
    measurement.py   all of that as the records of bench.json (records.py)
    compare.py       recorded sessions against each other and against the files of today
    tables.py        what the terminal shows
    devices.py       the table of devices, with sources (devices.yaml)
    environment.py   the measuring machine
    estimate.py      roofline, for unavailable devices; never shown as a measurement

Nothing here imports torch.
"""
