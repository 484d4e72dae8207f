"""Initial students and decoded photos, once for equal settings and files."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from hgkd_edge.data.decode import Canvas, decode_into
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
    """Stands for `decode_into`, for small WebP files such as the bundled photos."""

    def __init__(self) -> None:
        self._decoded: dict[tuple[bytes, Canvas, int], tuple[np.ndarray, str]] = {}

    def __call__(self, content: bytes, pixels: np.ndarray, canvas: Canvas, *, bits: int = 0) -> str:
        if content[8:12] != b"WEBP" or max(len(content), pixels.size) > 50_000:
            return decode_into(content, pixels, canvas, bits=bits)
        key = content, canvas, bits
        if key not in self._decoded:
            fault = decode_into(content, pixels, canvas, bits=bits)
            self._decoded[key] = pixels.copy(), fault
        pixels[:], fault = self._decoded[key]
        return fault
