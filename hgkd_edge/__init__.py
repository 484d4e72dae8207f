"""hgkd-edge: distill a Vision Transformer into a dense CNN, export, verify and measure it."""

__version__ = "0.1.0"
