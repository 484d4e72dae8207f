"""Which files a network is made of, and one digest and size of all of them.

An ONNX file may keep its weights in other files of its folder ("external data"), an OpenVINO .xml
keeps them in a .bin. Looking at the first file alone can confuse two networks.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from .atomic_files import file_sha256
from .errors import ExportError

# Maximum bytes of one file: libraries read all of it. Protobuf's limit is 2 GiB.
MOST_BYTES = {".onnx": 2**31, ".xml": 2**28, ".plan": 2**33, ".engine": 2**33}
_PLACE = re.compile(r"[0-9]{1,15}")
# How many tensors may share the same bytes: equal weights are sometimes stored once.
MOST_SHARED = 8

if TYPE_CHECKING:
    import onnx
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

__all__ = [
    "external_files",
    "network_digest",
    "network_files",
    "network_size",
    "renamed_files",
    "require_usual_size",
]


def network_files(path: str | Path) -> tuple[Path, ...]:
    """Every file of a network: the named one, then those that hold its weights.

    Args:
        path: `.onnx`, `.xml`, or any other file, which is a network by itself.

    Raises:
        ExportError: One is missing, or lies outside the network's folder.
    """
    path = Path(path)
    require_usual_size(path)
    if path.suffix == ".xml":
        return path, _require(path.with_suffix(".bin"), path)
    if path.suffix.lower() != ".onnx":
        return (path,)
    return path, *external_files(path, _read_graph(path))


def external_files(path: Path, model: onnx.ModelProto) -> tuple[Path, ...]:
    """The files that hold an ONNX model's weights.

    Call this before opening a model: what onnx and ONNX Runtime reject differs by release.

    Args:
        path: The model's file.
        model: What is in it.

    Raises:
        ExportError: One is missing, lies outside the model's folder, is read too often, or is
            smaller than a weight requires.
    """
    tensors = list(external_tensors(model))
    names = dict.fromkeys(location_of(tensor) for tensor in tensors)
    files = {name: _external_file(path, name) for name in names}
    sizes = {name: file.stat().st_size for name, file in files.items()}
    claimed = sum(_claimed_bytes(tensor, sizes[location_of(tensor)]) for tensor in tensors)
    if claimed > MOST_SHARED * sum(sizes.values()):
        raise ExportError(
            f"'{path}' reads {claimed:,} bytes of weights from files of {sum(sizes.values()):,}",
            hint="save the model again: each weight needs its own place in a file",
        )
    return tuple(files.values())


def require_usual_size(path: str | Path) -> None:
    """Reject a file too large for a network, before a library reads all of it.

    Raises:
        ExportError: It is larger than `MOST_BYTES`.
    """
    path = Path(path)
    most = MOST_BYTES.get(path.suffix.lower())
    if most is not None and path.is_file() and (size := path.stat().st_size) > most:
        raise ExportError(
            f"'{path}' has {size:,} bytes; {path.suffix} files are read up to {most:,}",
            hint="export it again, or copy it again",
        )


def network_digest(path: str | Path) -> str:
    """sha256 of a network: of its file, or of the sha256 of each of its files, in order."""
    digests = [file_sha256(file) for file in network_files(path)]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def network_size(path: str | Path) -> int:
    """Bytes of all files of a network."""
    return sum(file.stat().st_size for file in network_files(path))


def renamed_files(path: str | Path, name: str) -> dict[str, bytes | Path]:
    """An ONNX network under another name, ready to send: file name -> content.

    Args:
        path: The `.onnx` file.
        name: Its new name, `x.onnx`; files with weights become `x.1.weights`, `x.2.weights`, ...

    Raises:
        ExportError: A file is missing, or lies outside the network's folder.
    """
    first, *others = network_files(path)
    if not others:
        return {name: first}
    model = _read_graph(first)
    names: dict[str, str] = {}
    for tensor in external_tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                number = len(names) + 1
                new = names.setdefault(entry.value, f"{Path(name).stem}.{number}.weights")
                entry.value = new
    return {
        name: model.SerializeToString(deterministic=True),
        **dict(zip(names.values(), others, strict=True)),
    }


def external_tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """The tensors of a model whose values are in other files, wherever in the model they are."""
    import onnx
    from google.protobuf.message import Message

    if isinstance(message, onnx.TensorProto):
        if message.data_location == onnx.TensorProto.EXTERNAL:
            yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None and _holds_tensors(field.message_type):
            for inner in [value] if isinstance(value, Message) else value:
                yield from external_tensors(inner)


@functools.cache
def _holds_tensors(kind: Descriptor) -> bool:
    """Whether a message of this kind can hold a tensor; most of a model's messages cannot."""
    import onnx

    found, ahead = {kind.full_name}, [kind]
    while ahead:
        fields = ahead.pop().fields
        inner = {f.message_type.full_name: f.message_type for f in fields if f.message_type}
        ahead += [message for name, message in inner.items() if name not in found]
        found.update(inner)
    return onnx.TensorProto.DESCRIPTOR.full_name in found


def location_of(tensor: onnx.TensorProto) -> str:
    """The file that an external tensor names, relative to the model's folder."""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _claimed_bytes(tensor: onnx.TensorProto, size: int) -> int:
    """Bytes that an external tensor takes of a file of this size; the rest if it states none.

    Raises:
        ExportError: Its offset or length lies outside the file.
    """
    stated = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = (stated.get(key, "0") for key in ("offset", "length"))
    if not (_PLACE.fullmatch(offset) and _PLACE.fullmatch(length)) or (
        int(offset) + int(length) > size
    ):
        raise ExportError(
            f"weight '{tensor.name[:80]}' has no place in '{location_of(tensor)[:80]}', a file of "
            f"{size:,} bytes: offset {offset[:20]!r}, length {length[:20]!r}",
            hint="save the model again, or copy it again with its weights",
        )
    return int(length) or size - int(offset)


def _read_graph(path: Path) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.load(path, format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's and the system's errors share no base class
        raise ExportError(
            f"'{path}' is not a valid ONNX model", hint="export it again, or copy it again"
        ) from error


def _external_file(path: Path, location: str) -> Path:
    """The file of one location; never one outside the model's folder, links included."""
    named = PurePosixPath(location)
    file = path.parent / named
    folder = path.parent.resolve()
    if (
        not location
        or named.is_absolute()
        or ".." in named.parts
        or "\\" in location
        or not file.resolve().is_relative_to(folder)
    ):
        raise ExportError(
            f"'{path}' takes weights from '{location}', which is outside its folder",
            hint="save the model again with its weights in files next to it",
        )
    return _require(file, path)


def _require(file: Path, network: Path) -> Path:
    if not file.is_file():
        raise ExportError(
            f"'{network}' keeps its weights in '{file.name}', which is missing",
            hint=f"put '{file.name}' into the folder of '{network.name}'",
        )
    return file
