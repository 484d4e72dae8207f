"""Files that are copied into bundles and run on the device, on Python 3.8 and later.

This package does not import them, and they do not import this package.
"""
