"""The convolutional backbone: created from a recipe, saved as plain timm weights, loaded again.

`backbone.safetensors` holds exactly the state dict of `timm.create_model(name, num_classes=0,
**args)`. The file's metadata hold everything needed to create that model again (name, args, stem
stride, image size, normalization), so the file alone is enough.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hgkd_edge.data.input_spec import InputSpec
from hgkd_edge.data.resize import Geometry
from hgkd_edge.errors import ConversionError, RecipeError, RunError, reason_of
from hgkd_edge.files import atomic_write
from hgkd_edge.models.meta import on_meta
from hgkd_edge.models.untrusted import bounded, check_args, check_name, not_finite
from hgkd_edge.parsing import MAX_SETTINGS_BYTES, brief, parse_json
from hgkd_edge.run_files import require_recorded
from hgkd_edge.sparse.strided import guard_strided

__all__ = [
    "BackboneSpec",
    "EmbeddingNet",
    "create_classifier",
    "create_features",
    "create_timm_model",
    "fill_classifier",
    "fill_features",
    "freeze_unused",
    "load_embedding_net",
    "load_features",
    "read_backbone",
    "require_plain_form",
    "save_backbone",
]


# Errors that timm's constructors raise for invalid arguments.
REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class BackboneSpec:
    """Everything needed to create a backbone again.

    Attributes:
        name: timm model name.
        args: Further arguments of `timm.create_model`.
        stem_stride: Stride of the stem: 4 as published; 2 or 1 for small images.
        size: Image height and width in pixels used in training.
        mean: Per-channel mean of its input, in [0, 1].
        std: Per-channel standard deviation of its input.
        bits: Bits used by the 16-bit image files it was trained on; 0: all 16, or none.
    """

    name: str
    stem_stride: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    args: dict[str, object] = field(default_factory=dict)
    bits: int = 0

    def input(self, geometry: Geometry) -> InputSpec:
        """The network's input size and preprocessing."""
        return InputSpec(self.size, self.mean, self.std, geometry, self.bits)

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> BackboneSpec:
        """Read the metadata that `save_backbone` wrote."""
        fields = parse_json(metadata["hgkd_edge.backbone"], MAX_SETTINGS_BYTES)
        tuples = {key: tuple(fields[key]) for key in ("size", "mean", "std")}
        spec = cls(**{**fields, **tuples})
        spec._validate()
        return spec

    def _validate(self) -> None:
        """Check untrusted metadata; names and arguments are checked when the network is created.

        Raises:
            ValueError: A value is invalid for a backbone of this package.
        """
        sides = len(self.size) == 2 and all(type(s) is int and 0 < s <= 16_384 for s in self.size)
        numbers = [*self.mean, *self.std]
        statistics = len(self.mean) == len(self.std) == 3 and all(
            isinstance(n, int | float) and abs(n) <= 255 for n in numbers
        )
        if not (sides and statistics and min(self.std) > 0 and self.stem_stride in (1, 2, 4)):
            raise ValueError("its metadata gives no usable size, mean, std or stem_stride")
        if type(self.bits) is not int or not 0 <= self.bits <= 16:
            raise ValueError(f"its metadata gives no usable bits: {brief(self.bits)}")
        if not (isinstance(self.name, str) and isinstance(self.args, dict)):
            raise ValueError("its metadata gives no usable name or args")


class EmbeddingNet(nn.Module):
    """A backbone's deepest feature map, averaged over the image: used for k-NN and export.

    Args:
        features: Feature extractor whose last map is the deepest.
        spec: Description of the backbone.
    """

    def __init__(self, features: nn.Module, spec: BackboneSpec) -> None:
        super().__init__()
        self.features = features
        self.spec = spec

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W], normalized -> embedding float [B, C]."""
        return self.features(images)[-1].mean(dim=(2, 3))


def create_timm_model(key: str, name: str, args: dict[str, object], **own: Any) -> nn.Module:
    """`timm.create_model` with error messages that name the recipe key.

    Args:
        key: The recipe's key that names the model.
        name: timm model name; untrusted.
        args: Architecture arguments of a recipe or a file; untrusted.
        own: Arguments that this package sets; they take precedence.

    Raises:
        RecipeError: timm does not know the model or refuses the arguments, or the name or an
            argument refers to files, URLs or code.
    """
    check_name(key, name)
    if not timm.is_model(name):
        known = timm.list_models()
        near = difflib.get_close_matches(name.split(".")[0], known, n=1, cutoff=0.6)
        raise RecipeError(
            f"{key} = '{name}': timm {timm.__version__} has no such model",
            hint=f"did you mean '{near[0]}'?" if near else "see timm.list_models()",
        )
    section = key.partition(".")[0]
    check_args(f"{section}.args", name, args)
    settings = {**args, **own}
    if args:  # without arguments, the size is as published
        with bounded(f"{section}.args"), contextlib.suppress(*REFUSALS):
            # Errors raised by timm are reported below.
            timm.create_model(name, **{**settings, "pretrained": False})
    try:
        model: nn.Module = timm.create_model(name, **settings)
    except OSError:  # the hub cannot be reached: see `published_weights`
        raise
    except Exception as error:  # invalid arguments may raise anything
        raise RecipeError(f"{key} = '{name}': timm cannot make it: {reason_of(error)}") from error
    guard_strided(model)
    return model


def create_features(
    name: str, *, stem_stride: int = 4, args: dict[str, object] | None = None, min_stride: int = 0
) -> nn.Module:
    """An untrained timm feature extractor with the given stem stride.

    Args:
        name: timm model name.
        stem_stride: Stride of the stem; other than 4 for ResNets only.
        args: Further arguments of `timm.create_model`.
        min_stride: Skip feature maps with a finer stride.

    Raises:
        RecipeError: The model is unknown or is not a convolutional pyramid.
    """
    args = args or {}
    model = create_timm_model("student.name", name, args, features_only=True)
    _require_pyramid(model, name)
    _set_stem_stride(model, name, stem_stride)
    info: Any = model.feature_info
    reductions = info.reduction()
    wanted = [i for i, r in zip(info.out_indices, reductions, strict=True) if r >= min_stride]
    if len(wanted) < len(reductions):
        model = create_timm_model(
            "student.name", name, args, features_only=True, out_indices=wanted
        )
        _set_stem_stride(model, name, stem_stride)
    return model


def require_plain_form(features: nn.Module, name: str, args: dict[str, object]) -> None:
    """Check that every weight of a feature extractor has a counterpart in the plain timm model.

    Raises:
        ConversionError: A weight has none, so `save_backbone` would fail after training.
    """
    with on_meta():  # only names are needed, not weights
        plain = create_timm_model("student.name", name, args, num_classes=0).state_dict()
    for key in features.state_dict():
        _full_key(key, plain)


def freeze_unused(features: nn.Module) -> None:
    """Freeze weights that no feature map depends on: several processes would wait for them.

    Networks that keep all scales in parallel (HRNet) have such weights if the finest maps are
    skipped.
    """
    plain = copy.deepcopy(features).eval()
    side = 2 * max(plain.feature_info.reduction())  # type: ignore[union-attr,operator]
    with torch.enable_grad():
        maps = plain(torch.zeros(1, 3, side, side))
        torch.stack([m.sum() for m in maps]).sum().backward()
    used = {name for name, weight in plain.named_parameters() if weight.grad is not None}
    for name, weight in features.named_parameters():
        weight.requires_grad_(name in used)


def save_backbone(features: nn.Module, spec: BackboneSpec, path: Path) -> None:
    """Write a dense feature extractor's weights under the plain timm model's names.

    Layers that only a classifier has (such as a head convolution) are written as timm initializes
    them, because a strict `load_state_dict` must find every name.

    Raises:
        ConversionError: A weight has no counterpart in the plain timm model.
    """
    full = create_timm_model("student.name", spec.name, spec.args, num_classes=0)
    state = full.state_dict()
    for key, value in features.state_dict().items():
        state[_full_key(key, state)] = value
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    metadata = {"format": "pt", "hgkd_edge.backbone": json.dumps(asdict(spec))}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def read_backbone(path: Path) -> tuple[dict[str, Tensor], BackboneSpec]:
    """State dict and description of a `backbone.safetensors`.

    Raises:
        RunError: The file was not written by hgkd-edge, is broken, or is not the recorded one.
    """
    require_recorded(path)
    try:
        with safe_open(path, framework="pt") as stored:
            spec = BackboneSpec.from_metadata(stored.metadata() or {})
            state = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, LookupError, ValueError, TypeError, RecursionError) as error:
        raise RunError(
            f"{path} is not a backbone of hgkd-edge: {reason_of(error)}", hint="distill it again"
        ) from error
    _require_complete(state, spec, path)
    return state, spec


def _require_complete(state: dict[str, Tensor], spec: BackboneSpec, path: Path) -> None:
    """Check that a file holds exactly the weights of the network that it describes."""
    with on_meta():
        plain = create_timm_model("student.name", spec.name, spec.args, num_classes=0).state_dict()
    for key in sorted(plain.keys() | state.keys()):
        sides = [list(s[key].shape) if key in s else "missing" for s in (state, plain)]
        if sides[0] != sides[1]:
            raise RunError(
                f"{path} does not hold the '{spec.name}' that it describes: '{key}' is {sides[0]} "
                f"in the file and {sides[1]} in the network",
                hint="distill it again",
            )
    if damaged := not_finite(state):
        raise RunError(f"{path}: '{damaged}' holds NaN or infinity", hint="distill it again")


def load_features(path: Path) -> tuple[nn.Module, BackboneSpec]:
    """A dense feature extractor with the weights of `backbone.safetensors`.

    Raises:
        RunError: The file was not written by hgkd-edge, or is broken.
    """
    state, spec = read_backbone(path)
    features = create_features(spec.name, stem_stride=spec.stem_stride, args=spec.args)
    fill_features(features, state)
    return features.eval(), spec


def fill_features(features: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a plain timm model's weights into a feature extractor of the same architecture."""
    features.load_state_dict({key: state[_full_key(key, state)] for key in features.state_dict()})


def create_classifier(spec: BackboneSpec, num_classes: int) -> nn.Module:
    """The plain, untrained timm classifier of a backbone: [B, 3, H, W] -> logits [B, classes]."""
    model = create_timm_model("student.name", spec.name, spec.args, num_classes=num_classes)
    _set_stem_stride(model, spec.name, spec.stem_stride)
    return model


def fill_classifier(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a backbone's weights into its timm classifier; the last layer is unchanged."""
    head: str = model.pretrained_cfg["classifier"]  # type: ignore[index,assignment]
    own = {key: value for key, value in model.state_dict().items() if key.startswith(head + ".")}
    body = {key: value for key, value in state.items() if not key.startswith(head + ".")}
    model.load_state_dict({**body, **own})


def load_embedding_net(path: Path) -> EmbeddingNet:
    """The dense backbone with average pooling, in evaluation mode."""
    return EmbeddingNet(*load_features(path)).eval()


def _require_pyramid(model: nn.Module, name: str) -> None:
    """Refuse Transformers early and by name; `sparsify` refuses all other unsupported models."""
    info: Any = getattr(model, "feature_info", None)
    if info is None or len(set(info.reduction())) < 2:
        raise RecipeError(
            f"student.name = '{name}': is not convolutional (its feature maps are all of one "
            "stride)",
            hint="use a convolutional timm model, such as resnet18, mobilenetv3_large_100 or "
            "convnext_tiny",
        )


def _set_stem_stride(model: nn.Module, name: str, stem_stride: int) -> None:
    """Reduce the stride of a ResNet's stem; weights and their names are unchanged."""
    if stem_stride == 4:
        return
    conv = model.get_submodule("conv1") if hasattr(model, "conv1") else None
    if not isinstance(conv, nn.Conv2d) or not hasattr(model, "maxpool"):
        raise RecipeError(
            f"student.stem_stride = {stem_stride}: '{name}' has no plain ResNet stem",
            hint="use 4, or a ResNet such as resnet18",
        )
    model.maxpool = nn.Identity()
    if stem_stride == 1:
        conv.stride = (1, 1)
    infos = getattr(model.feature_info, "info", model.feature_info)  # a plain timm model has a list
    for info in infos:  # type: ignore[union-attr]
        stem = info["module"] in ("act1", "relu")
        info["reduction"] = stem_stride if stem else info["reduction"] * stem_stride // 4


def _full_key(key: str, full: dict[str, Tensor]) -> str:
    """Convert a feature extractor's parameter name to that of the plain timm model."""
    head, _, rest = key.partition(".")
    stage, _, number = head.rpartition("_")
    # timm's feature extractors either keep names, flatten `stages.0` to `stages_0` (or
    # `stem.in_conv` to `stem_in_conv`), or wrap.
    for candidate in (key, f"{stage}.{number}.{rest}", key.replace("_", ".", 1), rest):
        if candidate in full:
            return candidate
    raise ConversionError(
        f"weight '{key}' has no place in the plain timm model",
        hint="use another student.name: this one could not be saved as a timm model",
    )
