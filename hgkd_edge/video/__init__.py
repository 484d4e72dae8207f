"""Predictions for video files, webcams, network streams, and folders being filled.

A thread decodes, a bounded queue passes frames on, and the main thread processes them in order.
PyAV (the extra `video`) is imported only when a video is opened.
"""
