"""Run a TensorRT engine (8.5 or later) from Python with JetPack's own packages.

Neither PyCUDA nor PyTorch is needed. `tensorrt` for Python comes with JetPack
(`sudo apt install python3-libnvinfer`); memory is handled through CUDA's runtime library.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Dict, Sequence, Tuple

import numpy as np

LIBRARIES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
TO_DEVICE, TO_HOST = 1, 2  # kinds of cudaMemcpy
# By TensorRT's names. `tensorrt.nptype` of 8.5 does not run with numpy 1.24 or later.
DTYPES: Dict[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}


class Cuda:
    """The CUDA runtime calls needed to run an engine."""

    def __init__(self, library: Any = None) -> None:
        self.library = library or _cuda_runtime()

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library.

        Raises:
            RuntimeError: It failed.
        """
        status = getattr(self.library, name)(*arguments)
        if status:
            raise RuntimeError("%s failed with CUDA error %d" % (name, status))

    def allocate(self, size: int) -> int:
        """Address of `size` new bytes on the device."""
        address = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(max(1, size)))
        return address.value or 0

    def copy(self, target: int, source: int, size: int, kind: int) -> None:
        """Copy bytes; returns when the copy is complete."""
        self.call(
            "cudaMemcpy",
            ctypes.c_void_p(target),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
            ctypes.c_int(kind),
        )


def _cuda_runtime() -> Any:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise RuntimeError(
        "CUDA's runtime library was not found: export LD_LIBRARY_PATH=/usr/local/cuda/lib64"
    )


class Engine:
    """An engine file as a function from the network's input to its outputs by name.

    Args:
        path: Built by `build_engine.py` on this device: an engine is machine code for one GPU and
            one version of TensorRT. Do not load engines from elsewhere.
        cuda: CUDA's runtime.
    """

    def __init__(self, path: Path, cuda: Any = None) -> None:
        import tensorrt

        self.cuda = cuda or Cuda()
        runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING))
        self.engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise RuntimeError("%s cannot be loaded: build it again with build_engine.py" % path)
        self.context = self.engine.create_execution_context()
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        entering = tensorrt.TensorIOMode.INPUT
        self.inputs = [n for n in names if self.engine.get_tensor_mode(n) == entering]
        self.outputs = [n for n in names if n not in self.inputs]
        self.dtypes = {n: DTYPES[self.engine.get_tensor_dtype(n).name] for n in names}
        self.memory: Dict[str, Tuple[int, int]] = {}  # name -> address and size on the device

    def __call__(self, batch: np.ndarray) -> Dict[str, np.ndarray]:
        """Outputs by name of one input, f32[B, 3, H, W]."""
        (feed,) = self.inputs
        batch = np.ascontiguousarray(batch, self.dtypes[feed])
        self.context.set_input_shape(feed, batch.shape)
        address = self._reserve(feed, batch.nbytes)
        self.cuda.copy(address, batch.ctypes.data, batch.nbytes, TO_DEVICE)
        results = {name: self._result(name) for name in self.outputs}
        if not self.context.execute_async_v3(0):  # on the default stream: copies wait for it
            raise RuntimeError("TensorRT could not run the engine; its log says why")
        for name, array in results.items():
            self.cuda.copy(array.ctypes.data, self.memory[name][0], array.nbytes, TO_HOST)
        return results

    def _result(self, name: str) -> np.ndarray:
        shape: Sequence[int] = tuple(self.context.get_tensor_shape(name))
        array = np.empty(shape, self.dtypes[name])
        self._reserve(name, array.nbytes)
        return array

    def _reserve(self, name: str, size: int) -> int:
        """Memory on the device for a tensor, kept for the next call."""
        address, reserved = self.memory.get(name, (0, -1))
        if reserved < size:
            if address:
                self.cuda.call("cudaFree", ctypes.c_void_p(address))
            address = self.cuda.allocate(size)
            self.memory[name] = (address, size)
        self.context.set_tensor_address(name, address)
        return address
