"""hgkd-edge: distil a Vision Transformer into a dense CNN, export it with proof, measure it."""

__version__ = "0.1.0"
