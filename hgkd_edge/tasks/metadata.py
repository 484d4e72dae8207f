"""What a model file (ONNX, OpenVINO) records of itself: task, classes, input, origin. No torch.

`export` writes it; `predict`, `evaluate`, `compare` and bundles read it. Each value is JSON, under
a key that starts with `hgkd_edge.`. `exporters.bake` adds what it puts into a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hgkd_edge.data.input_spec import PREFIX, InputSpec
from hgkd_edge.parsing import MAX_RECORD_BYTES, parse_json
from hgkd_edge.tasks.answers import GEOMETRY, as_threshold

__all__ = ["EMBED", "ModelMetadata", "weights_digest"]

EMBED = "embed"  # the task of a bare backbone

_WEIGHTS = "weights_sha256"


@dataclass(frozen=True)
class ModelMetadata:
    """What a file records of itself.

    Attributes:
        task: A task, or `embed` for a bare backbone.
        classes: Class names in the order of the outputs.
        input: The network's input and preprocessing.
        threshold: `multilabel`: the lowest probability of a label. None for other tasks.
        baked: What was baked into the file: `preprocessing`, `postprocessing`.
        frame: Height and width of its frames, where preprocessing is baked in for one frame size.
    """

    task: str
    classes: tuple[str, ...]
    input: InputSpec
    threshold: float | None = None
    baked: frozenset[str] = frozenset()
    frame: tuple[int, int] | None = None

    def entries(self, *, weights_sha256: str, model: str, run: str) -> dict[str, str]:
        """Entries of a file without processing inside.

        Args:
            weights_sha256: Digest of the weights that it is made from.
            model: Name of the architecture.
            run: Name of the run.
        """
        entries = {
            "task": json.dumps(self.task),
            "model": json.dumps(model),
            **self.input.metadata(),
            "classes": json.dumps(self.classes),
            _WEIGHTS: json.dumps(weights_sha256),
            "run": json.dumps(run),
        }
        if self.threshold is not None:
            entries["threshold"] = json.dumps(self.threshold)
        if self.task == EMBED:
            entries["backbone_sha256"] = entries[_WEIGHTS]
        return {f"{PREFIX}{key}": value for key, value in entries.items()}

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> ModelMetadata:
        """Read a file's entries.

        Raises:
            KeyError, ValueError, TypeError: An entry is missing or damaged.
        """
        task = _stated(metadata, "task")
        frame = _stated(metadata, "frame", "null")
        if not (frame is None or (len(frame) == 2 and all(_is_side(side) for side in frame))):
            raise ValueError("no size of frames")
        tags = task == "multilabel"
        return cls(
            task=task,
            classes=tuple(_words(_stated(metadata, "classes"))),
            input=InputSpec.from_metadata(metadata, geometry=GEOMETRY.get(task, "cover")),
            threshold=as_threshold(_stated(metadata, "threshold")) if tags else None,
            baked=frozenset(_words(_stated(metadata, "baked", "[]"))),
            frame=tuple(frame) if frame else None,
        )


def weights_digest(metadata: Mapping[str, str]) -> str | None:
    """Digest of the weights that a file was exported from; None if it does not record them."""
    stated = metadata.get(PREFIX + _WEIGHTS)
    return None if stated is None else stated.strip('"')


def _stated(metadata: Mapping[str, str], key: str, default: str = "") -> Any:
    return parse_json(metadata.get(PREFIX + key, default), MAX_RECORD_BYTES)


def _words(value: Any) -> list[str]:
    if not (isinstance(value, list) and all(isinstance(word, str) for word in value)):
        raise ValueError("no list of words")
    return value


def _is_side(value: Any) -> bool:
    return type(value) is int and value > 0
