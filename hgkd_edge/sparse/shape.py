"""The shape of a layer that looks across sites: the region it reads around each tile."""

from __future__ import annotations

from typing import NamedTuple

from hgkd_edge.sparse.visible import Window


class ConvShape(NamedTuple):
    """The region that a convolution or pooling reads; pairs are (rows, columns)."""

    t: int  # side of an input tile
    kernel: tuple[int, int]
    stride: tuple[int, int]
    before: tuple[int, int]  # padding above and to the left
    dilation: tuple[int, int]
    groups: int

    @property
    def windows(self) -> tuple[Window, Window]:
        """The window read around one tile, along rows and columns."""
        sizes = [
            (self.t // s - 1) * s + d * (k - 1) + 1
            for k, s, d in zip(self.kernel, self.stride, self.dilation, strict=True)
        ]
        return Window(self.before[0], sizes[0]), Window(self.before[1], sizes[1])

    @property
    def pointwise(self) -> bool:
        """Whether each output reads one site: kernel 1 x 1, no padding."""
        return self.kernel == (1, 1) and self.before == (0, 0)

    @property
    def turned(self) -> ConvShape:
        """The convolution that propagates the output's gradient to the input, for stride 1."""
        reach = [d * (k - 1) for k, d in zip(self.kernel, self.dilation, strict=True)]
        return self._replace(before=(reach[0] - self.before[0], reach[1] - self.before[1]))
