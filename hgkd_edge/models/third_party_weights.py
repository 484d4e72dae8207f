"""Third-party weights: read without running code, and loaded completely or not at all.

A checkpoint may hold several networks (raw and averaged, student and teacher), under several names,
together with parts that no backbone has. The matching network is found by its weights, not by the
order of names. If two match, a fixed rule selects one, or the file is refused.
"""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hgkd_edge.errors import RecipeError, reason_of
from hgkd_edge.models.untrusted import is_array, not_finite, require_stored
from hgkd_edge.parsing import require_file

__all__ = ["fitting_weights"]

AVERAGED = frozenset({"ema", "model_ema", "state_dict_ema", "ema_state_dict", "ema_model"})
DEEPEST = 4  # levels of dictionaries in a checkpoint
MOST_NETWORKS = 1000  # in a checkpoint; each one is tried
LARGEST_FILE = 2**37  # bytes of a checkpoint
# Weights that a file has and the network lacks, and why the tokens do not depend on them.
HARMLESS = {
    "classifiers and projections, which come after the tokens": r"(head|heads|head_dist|fc_norm"
    r"|fc|classifier|pre_logits|attn_pool|lm_head|dino_head|ibot_head|projector|predictor"
    r"|cls_head)(\.|$)",
    "the decoder of masked autoencoders": r"decoder(_\w+)?(\.|$)|mask_token$",
    "text towers next to an image tower": r"(text|transformer|token_embedding|ln_final)(\.|$)"
    r"|(text_projection|positional_embedding|logit_scale|logit_bias)$",
    "tables that the network computes itself": r"(.*\.)?(relative_position_index|rope(\.\w+)?"
    r"|freqs_cos|freqs_sin|periods|k_bias|bias_mask)$",
    "counters of averaging": r"n_averaged$",
}
_HARMLESS = re.compile("|".join(HARMLESS.values()))


class _Ignored(dict[Any, Any]):
    """Placeholder for non-weight objects in a checkpoint; stores nothing and runs nothing.

    Training scripts store their settings and scores. torch's weights-only reader creates this class
    instead of the types named in `IGNORED`, so their code never runs.
    """

    def __new__(cls, *_: Any, **__: Any) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


IGNORED = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.multiarray.{f}"
        for core in ("core", "_core")
        for f in ("scalar", "_reconstruct")
    ),
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float32", "Float64", "Int32", "Int64", "Bool")),
    *(
        f"{module}.{flavor}{kind}Path"
        for module in ("pathlib", "pathlib._local")
        for flavor in ("", "Pure")
        for kind in ("", "Posix", "Windows")
    ),
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
)


class _Network(NamedTuple):
    """One of a checkpoint's networks, identified by its dictionary and prefix."""

    name: str
    state: dict[str, Tensor]

    @property
    def words(self) -> set[str]:
        return set(self.name.split("."))


def fitting_weights(
    network: nn.Module, path: Path, *, key: str, skipped: str = ""
) -> tuple[dict[str, Tensor], str]:
    """The weights of a checkpoint that match a network: all of them and no others.

    Args:
        network: A timm model.
        path: `.safetensors`, or a file written by `torch.save`.
        key: The recipe's key that names the file.
        skipped: A module in the file that the network lacks, such as the classifier `fc`.

    Returns:
        A state dict that loads strictly, and its location in the file: '' unless the file holds
        several networks.

    Raises:
        RecipeError: The file cannot be read safely, holds no matching network, holds weights that
            the network lacks, or holds several matching networks without a rule to choose.
    """
    found = list(islice(_networks(_read(path, key), _anchor(network)), MOST_NETWORKS + 1))
    if len(found) > MOST_NETWORKS:
        raise RecipeError(
            f"{key} = '{path}': holds more than {MOST_NETWORKS} networks",
            hint="save the one to use in a separate file and name that",
        )
    if not found:
        raise RecipeError(f"{key} = '{path}': is not a state dict", hint=f"name another {key}")
    fitting, problems = [], []
    for each in found:
        try:
            own_state = {k: v for k, v in each.state.items() if not _below(k, skipped)}
            state = _convert(own_state, network, path, key)
        except RecipeError as error:
            problems.append(error)
            continue
        problem = _problem(state, network, path, key)
        if problem is None:
            own = network.state_dict()
            fitting.append(_Network(each.name, {k: v for k, v in state.items() if k in own}))
        else:
            problems.append(problem)
    if not fitting:
        raise problems[0]
    chosen = _choose(fitting, path, key)
    return chosen.state, chosen.name if len(found) > 1 else ""


def _below(name: str, module: str) -> bool:
    return bool(module) and name.startswith(f"{module}.")


def _read(path: Path, key: str) -> Any:
    """The contents of a checkpoint: tensors in nested dictionaries."""
    try:
        require_file(path, LARGEST_FILE, kind="checkpoint")
        if path.suffix == ".safetensors":
            return load_file(path)
        # weights_only: a third-party checkpoint must not run code.
        with torch.serialization.safe_globals([(_Ignored, name) for name in IGNORED]):
            content = torch.load(path, map_location="cpu", weights_only=True)
        require_stored(content)
        return content
    except FileNotFoundError as error:
        raise RecipeError(f"{key} = '{path}': no such file", hint=f"correct {key}") from error
    except pickle.UnpicklingError as error:
        kind = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise RecipeError(
            f"{key} = '{path}': holds more than tensors"
            + (f" ({kind[1]})" if kind else "")
            + ", so it is not loaded (it could run code)",
            hint="save its state dict as .safetensors and name that",
        ) from error
    except ValueError as error:
        raise RecipeError(
            f"{key} = '{path}': {reason_of(error)}",
            hint=f"name another {key}: a PyTorch or .safetensors checkpoint",
        ) from error
    except (OSError, RuntimeError, EOFError, TypeError, KeyError, SafetensorError) as e:
        raise RecipeError(
            f"{key} = '{path}': cannot be read ({type(e).__name__})",
            hint="download it again; it must be a PyTorch or .safetensors checkpoint",
        ) from e


def _anchor(network: nn.Module) -> str:
    """A weight that every copy of the network has exactly once: that of a convolution.

    A ResNet's `conv1.weight` is unsuitable: `layer1.0.conv1.weight` has the same ending.
    """
    names = list(network.state_dict())
    convolutions = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    for name in (f"{convolution}.weight" for convolution in convolutions):
        if sum(f".{other}".endswith(f".{name}") for other in names) == 1:
            return name
    return names[0]


def _networks(content: Any, anchor: str, name: str = "", depth: int = 0) -> Iterator[_Network]:
    """Every network of a checkpoint: one per dictionary of tensors and prefix in it."""
    if not isinstance(content, dict) or isinstance(content, _Ignored) or depth > DEEPEST:
        return
    named = {k: v for k, v in content.items() if isinstance(k, str)}
    state = {k: v.float() for k, v in named.items() if is_array(v)}
    prefixes = sorted({k.removesuffix(anchor) for k in state if f".{k}".endswith(f".{anchor}")})
    prefixes = prefixes[: MOST_NETWORKS + 1]
    for prefix in prefixes or [""] * bool(state):
        inner = [p for p in prefixes if p != prefix and p.startswith(prefix)]
        own = {
            k.removeprefix(prefix): v
            for k, v in state.items()
            if k.startswith(prefix) and not any(k.startswith(p) for p in inner)
        }
        yield _Network(".".join(filter(None, (name, prefix.rstrip(".")))), own)
    for k, v in named.items():
        yield from _networks(v, anchor, f"{name}.{k}".strip("."), depth + 1)


def _convert(
    state: dict[str, Tensor], network: nn.Module, path: Path, key: str
) -> dict[str, Tensor]:
    """timm's own conversion: published layouts, and position embeddings on another grid."""
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return convert(state, network)
    except Exception as error:  # made for known files: others may raise anything
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise RecipeError(
            f"{key} = '{path}': timm cannot fit it to {type(network).__name__} ({reason})",
            hint=_describe(key),
        ) from error


def _problem(
    state: dict[str, Tensor], network: nn.Module, path: Path, key: str
) -> RecipeError | None:
    """Why weights do not belong to this network, or None."""
    own = network.state_dict()
    where = f"{key} = '{path}': does not fit the network"
    missing = sorted(k for k, v in own.items() if k not in state or state[k].shape != v.shape)
    if missing:
        first = missing[0]
        found = f"shape {list(state[first].shape)}" if first in state else "not in the file"
        return RecipeError(
            f"{where}: {len(missing)} of {len(own)} weights missing, such as '{first}' "
            f"{list(own[first].shape)} ({found})",
            hint=_describe(key),
        )
    left = sorted(k for k in state if k not in own and not _HARMLESS.match(k))
    if left:
        return RecipeError(
            f"{where}: {len(left)} weights of the file are left over, such as '{left[0]}' "
            f"{list(state[left[0]].shape)}",
            hint=_describe(key),
        )
    if damaged := not_finite({k: state[k] for k in own}):
        return RecipeError(
            f"{key} = '{path}': weight '{damaged}' holds NaN or infinity",
            hint=f"name another {key}: this training diverged, or the file is damaged",
        )
    return None


def _describe(key: str) -> str:
    section = key.partition(".")[0]
    return f"{section}.name and {section}.args must describe the network in the file"


def _choose(fitting: list[_Network], path: Path, key: str) -> _Network:
    """Prefer averaged weights to raw ones, a teacher to its student; equal ones count as one."""
    averaged = [n for n in fitting if n.words & AVERAGED]
    best = averaged or fitting
    if all(n.words & {"teacher", "student"} for n in best):  # a teacher is its student's average
        best = [n for n in best if "teacher" in n.words] or best
    first = best[0]
    for other in best[1:]:
        if any(not torch.equal(v, other.state[k]) for k, v in first.state.items()):
            names = " and ".join(f"'{n.name or 'the top level'}'" for n in (first, other))
            raise RecipeError(
                f"{key} = '{path}': holds {len(best)} networks that fit, such as {names}",
                hint="save the one to use in a separate file and name that",
            )
    return first
