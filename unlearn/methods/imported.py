"""Imported: a model that was unlearned elsewhere, read from a file of its weights.

    theta_u = theta of the file

Of no paper. It is for auditing what other code has made: the row's original and reference are trained here, so the file
should come from the same data, architecture, recipe and forget set (`scenario=indices` takes any). `weights` is a
safetensors file, a state dict of the `model` that is configured, either as we store ours, with the normalisation as the
first layer (`0.mean`, `0.std`, `1.NAME`), or of the network alone (`NAME`), which then gets the normalisation of the
data set. Names and shapes must all fit.

The file is identified by its content. It is one model: audits that need others made as it was, from other originals or
with other chance, are refused. Its cost in a row is that of reading the file, and says nothing of how it was made.
"""

from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unlearn.request import Request
from unlearn.settings import SettingError
from unlearn.streams import Streams

NEEDS = frozenset[str]()
FILES = ("weights",)
ONE_MODEL = True
ALLOWED = "must be a safetensors file of the model's weights"


def check(lab: Any, *, weights: str) -> None:
    """The file fits the model, and there is one request, which the file has met."""
    if len(lab.requests) > 1:
        raise SettingError("requests", len(lab.requests), "must be 1: an imported model has met all of its requests")
    fitting(weights, lab.training.initialised(Streams("check")).state_dict())


def imported(model: nn.Module, request: Request, streams: Streams, *, weights: str) -> nn.Module:
    """The model of the file, whatever `model` was."""
    model.load_state_dict(fitting(weights, model.state_dict()))
    return model.eval()


def fitting(file: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under the names of `own`, the state of the model; a `SettingError` unless all fit."""
    try:
        found = load_file(Path(file).expanduser())
    except (OSError, SafetensorError) as error:
        raise SettingError("method.weights", file, shorten(f"{ALLOWED}: {error}", 240)) from error
    if not found.keys() & {"0.mean", "0.std"}:
        first = {name: value for name, value in own.items() if name.startswith("0.")}
        found = first | {f"1.{name}": value for name, value in found.items()}
    wrong = [f"lacks {named(own.keys() - found.keys())}"] if own.keys() - found.keys() else []
    wrong += [f"has {named(found.keys() - own.keys())} besides"] if found.keys() - own.keys() else []
    wrong += [
        f"has {name} of {size(found[name])} in the place of {size(value)}"
        for name, value in own.items()
        if name in found and found[name].shape != value.shape
    ][:1]
    if wrong:
        raise SettingError("method.weights", file, f"{ALLOWED}; this one {', '.join(wrong)}")
    return found


def named(names: set[str]) -> str:
    """The first of some names, and how many there are more."""
    more = len(names) - 1
    return min(names) + (f" and {more} more" if more else "")


def size(value: Tensor) -> str:
    """A shape in words."""
    return " x ".join(map(str, value.shape)) or "one number"
