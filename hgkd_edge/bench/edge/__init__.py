"""Measuring on an edge device, this one or one reached over SSH.

    ssh.py         user@host:port -> the system's OpenSSH client with a constant command
    device.sh      runs on the device: facts, steps, telemetry; POSIX sh, no Python
    ort_device.py  measures with onnxruntime on devices without trtexec
    link.py        the connection: facts, archive, messages, stop
    facts.py       raw facts -> which Jetson, which JetPack, power mode, clocks
    trtexec.py     trtexec's flags by version, its log and its --exportTimes
    tegrastats.py  power, clocks, temperature and throttling from tegrastats lines
    job.py         models and options -> files and steps
    results.py     results of the steps -> measurements of bench.json
    measure.py     one device from connection to session; several hosts, one table

No user-supplied name (host, model, input) ever reaches a shell: the ssh command is a constant, and
everything else is sent in files.
"""
