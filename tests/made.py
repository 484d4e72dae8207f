"""Initial students and decoded photos, once for equal settings and files."""

from __future__ import annotations

import copy

import torch
from PIL import Image, ImageFile
from torch import Tensor

from hgkd_edge.data.depth import decode_rgb
from hgkd_edge.data.orientation import Turn
from hgkd_edge.distillation.parts import _encoder
from hgkd_edge.recipe_sections import StudentConfig
from hgkd_edge.sparse import SparseEncoder


class MakeOnce:
    """Stands for `hgkd_edge.distillation.parts._encoder`; returns copies of its results.

    The conversion takes a third of a second. Students with weights from a file or the hub are
    always made: the file may have changed.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[str, int, bytes], tuple[SparseEncoder, Tensor]] = {}

    def __call__(self, student: StudentConfig, stride: int, *, download: bool) -> SparseEncoder:
        if student.weights != "none" or torch.is_inference_mode_enabled():
            return _encoder(student, stride, download=download)
        key = student.model_dump_json(), stride, torch.get_rng_state().numpy().tobytes()
        if key not in self._made:
            made = _encoder(student, stride, download=download)
            self._made[key] = made, torch.get_rng_state()
        encoder, state = self._made[key]
        torch.set_rng_state(state)  # what follows draws from it
        return copy.deepcopy(encoder)


class DecodeOnce:
    """Stands for `decode_rgb`, for WebP files of the bundled photos' size."""

    def __init__(self) -> None:
        self._decoded: dict[tuple[bytes, Turn, int], Image.Image] = {}

    def __call__(
        self, image: ImageFile.ImageFile, content: bytes, turn: Turn, *, bits: int = 0
    ) -> Image.Image:
        if image.format != "WEBP" or image.size != (96, 96):
            return decode_rgb(image, content, turn, bits=bits)
        key = content, turn, bits
        if key not in self._decoded:
            self._decoded[key] = decode_rgb(image, content, turn, bits=bits).copy()
        return self._decoded[key].copy()
