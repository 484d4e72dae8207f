"""Sparse convolutional encoders: only the visible patches are computed.

    encoder = sparsify(timm_model, backend="tiles")
    maps = encoder(images, visible)
    model = densify(encoder)

See docs/sparse.md.
"""

from hgkd_edge.sparse.choice import kernel_table
from hgkd_edge.sparse.encoder import SparseEncoder, densify, sparsify

__all__ = ["SparseEncoder", "densify", "kernel_table", "sparsify"]
