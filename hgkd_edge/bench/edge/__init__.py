"""Measuring on an edge device, this one or one reached over SSH.

    ssh.py             user@host:port -> the system's OpenSSH client with a constant command
    device.sh          runs on the device: facts, steps, telemetry; POSIX sh, no Python
    link.py            the connection: facts, files, results, stop; messages.py bounds what it reads
    facts.py           raw facts -> which Jetson, which JetPack, power mode, clocks
    job.py             what is measured: cases, files, outputs, power
    by_trtexec.py      commands for trtexec (trtexec.py: its flags by version, its output)
    by_onnxruntime.py  without trtexec: ort_device.py, which is sent to the device
    tegrastats.py      power, clocks, temperature and throttling from tegrastats lines
    hosts.py           one device from connection to session; several hosts, one table

No user-supplied name (host, model, input) ever reaches a shell: the ssh command is a constant, and
everything else is sent in files.
"""
