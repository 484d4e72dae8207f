"""Answers for what cameras give: video files, webcams, network streams, folders being filled.

A thread decodes, a bounded queue hands frames over, the main thread answers them in order. Nothing
here imports PyAV (the extra `video`) before a video is opened.
"""
