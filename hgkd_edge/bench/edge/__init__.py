"""Measuring on an edge device, this one or one reached over SSH.

    ssh.py         user@host:port -> an OpenSSH connection with the agent at its other end
    agent/         what runs there: Python 3.6+, standard library (numpy + onnxruntime when needed)
    link.py        the conversation with the agent: facts, upload, events, results, stop
    facts.py       raw facts -> which Jetson, which JetPack, power mode, clocks
    trtexec.py     trtexec's flags by version, its log and its --exportTimes
    tegrastats.py  power, clocks, temperature and throttling from tegrastats lines
    job.py         models and options -> a job; raw results -> a session of bench.json
    measure.py     one device from the greeting to the session; several hosts, one table

Nothing a user can name (host, model, input) ever reaches a shell: the command given to ssh is a
constant, and everything else travels as JSON and bytes on the agent's standard input.
"""
