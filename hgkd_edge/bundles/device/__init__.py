"""Files that are copied into bundles and run on the device, on Python 3.8 and later.

Nothing of this package imports them, and they import nothing of it.
"""
