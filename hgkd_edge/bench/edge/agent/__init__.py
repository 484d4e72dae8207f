"""Runs on the device that is measured. Python 3.6+, standard library only, no annotations newer
than that: a Jetson Nano's JetPack 4 has Python 3.6, JetPack 5 has 3.8.

Its source is sent over the connection and run from memory; see `main`.
"""
