"""Runs on the device that is measured. Python 3.6+, standard library only, no annotations newer
than that: a Jetson Nano's JetPack 4 has Python 3.6, JetPack 5 has 3.8.

It is sent as a zip archive and started by a constant command; see `main`.
"""
