"""Quantization-aware training: a network that computes as its INT8 file will.

NVIDIA's ModelOpt puts a fake quantizer in front of every convolution and linear layer and on its
weights: symmetric int8, one scale per tensor of activations and one per output channel of weights.
These are the places and the grid of the INT8 flavor `tensorrt`. Afterwards the rounded weights go
back into the plain network, so that nothing but training needs ModelOpt.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from exporters.quiet import quiet
from hgkd_edge.errors import ConversionError, MissingPackageError

__all__ = [
    "input_ranges",
    "require_modelopt",
    "rounding_inputs",
    "simulate_int8",
    "take_rounded_weights",
]

_LAYERS: dict[type[nn.Module], str] = {
    nn.Conv2d: "nn.Conv2d",
    nn.ConvTranspose2d: "nn.ConvTranspose2d",
    nn.Linear: "nn.Linear",
}
# A few images can have activations many times larger than all others. Ranges from the extremes
# then leave most values a handful of the 255 steps, and training does not change the ranges.
_PERCENTILE = 99.9
_QUANTIZER = "_quantizer."  # in the names of everything that ModelOpt adds to a state dict


def require_modelopt() -> Any:
    """`modelopt.torch.quantization`.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        with quiet("modelopt"):
            import modelopt.torch.quantization as quantization
    except ImportError as error:
        raise MissingPackageError("finetune --qat", extra="qat", package="modelopt") from error
    return quantization


def simulate_int8(network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Make a network round as INT8 does; gradients pass the rounding unchanged.

    The ranges of activations hold all but the rarest 0.1 % of the values seen, and stay fixed; the
    scales of weights follow the weights. A classifier's last layer stays in float, as in the
    exported file.

    Args:
        network: A trained network, changed in place.
        batches: Calibration images as the network sees them, f[B, 3, H, W].

    Raises:
        ConversionError: A layer of the network cannot be simulated.
    """
    head = _last_layer(network)
    _require_plain_layers(network, except_for=head)
    quantization = require_modelopt()
    network.eval()
    with quiet("modelopt"), torch.no_grad():
        simulated: nn.Module = quantization.quantize(network, _settings(head))
        _calibrate(simulated, batches)
    return simulated


def input_ranges(simulated: nn.Module) -> dict[str, float]:
    """The largest magnitude that every INT8 layer's input can have, by the layer's name."""
    found = {}
    for name, module in simulated.named_modules():
        largest = getattr(getattr(module, "input_quantizer", None), "amax", None)
        if largest is not None:  # None: a layer in float, or one that never ran
            found[name] = float(largest)
    return found


def take_rounded_weights(simulated: nn.Module, plain: nn.Module) -> None:
    """Load weights into a network without quantizers, rounded as INT8 rounds them.

    They lie on the grid: quantizing them again per channel changes nothing.

    Args:
        simulated: As `simulate_int8` made it; its weights are rounded too.
        plain: The same architecture.
    """
    require_modelopt().fold_weight(simulated)
    state = simulated.state_dict()
    plain.load_state_dict({key: value for key, value in state.items() if _QUANTIZER not in key})


def rounding_inputs(network: nn.Module, ranges: Mapping[str, float]) -> nn.Module:
    """A copy of a network whose layers round their inputs to int8, as in training; no ModelOpt.

    Args:
        network: With the weights of `take_rounded_weights`.
        ranges: As `input_ranges` returned them.
    """
    rounding = copy.deepcopy(network)
    for name, largest in ranges.items():
        rounded = partial(_round_input, scale=max(largest, 1e-12) / 127)
        rounding.get_submodule(name).register_forward_pre_hook(rounded)
    return rounding


def _round_input(
    module: nn.Module, inputs: tuple[Tensor, ...], *, scale: float
) -> tuple[Tensor, ...]:
    first, *others = inputs
    return torch.fake_quantize_per_tensor_affine(first, scale, 0, -127, 127), *others


def _calibrate(simulated: nn.Module, batches: Iterable[Tensor]) -> None:
    inputs = [getattr(module, "input_quantizer", None) for module in simulated.modules()]
    quantizers: list[Any] = [
        quantizer for quantizer in inputs if getattr(quantizer, "is_enabled", False)
    ]
    for quantizer in quantizers:
        quantizer.disable_quant()
        quantizer.enable_calib()
    for images in batches:
        simulated(images)
    for quantizer in quantizers:
        quantizer.disable_calib()
        amax = quantizer._calibrator.compute_amax("percentile", percentile=_PERCENTILE)
        if amax is None:
            quantizer.disable()  # this layer never ran
            continue
        quantizer.enable_quant()
        # More than this share of the values may be zero.
        quantizer.amax = amax if amax > 0 else quantizer._calibrator._calib_bin_edges[-1]


def _require_plain_layers(network: nn.Module, *, except_for: str | None) -> None:
    """Refuse layers that compute otherwise than PyTorch's: ModelOpt would leave them in float."""
    for name, module in network.named_modules():
        kind = next((kind for kind in _LAYERS if isinstance(module, kind)), None)
        if kind is not None and name != except_for and type(module).forward is not kind.forward:
            raise ConversionError(
                f"INT8 of layer '{name}' ({type(module).__name__}) cannot be simulated in training",
                hint="export with --precision int8 --max-drop instead of finetune --qat",
            )


def _settings(head: str | None) -> dict[str, Any]:
    """ModelOpt's configuration: later entries overrule earlier ones."""
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for kind in _LAYERS.values():
        weights = {"num_bits": 8, "axis": 0, "type": "dynamic"}
        inputs = {"num_bits": 8, "axis": None, "calibrator": "histogram"}
        entries += [
            {"quantizer_name": "*weight_quantizer", "parent_class": kind, "cfg": weights},
            {"quantizer_name": "*input_quantizer", "parent_class": kind, "cfg": inputs},
        ]
    if head is not None:
        entries.append({"quantizer_name": f"{head}.*", "enable": False})
    return {"quant_cfg": entries, "algorithm": None}


def _last_layer(network: nn.Module) -> str | None:
    """A timm classifier's linear layer; None for networks that end otherwise."""
    name = (getattr(network, "pretrained_cfg", None) or {}).get("classifier")
    if not isinstance(name, str) or not isinstance(network.get_submodule(name), nn.Linear):
        return None
    return name
