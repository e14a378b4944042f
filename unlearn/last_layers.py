"""The last layers of a network, counted from the output: what CF-k and EU-k train (Goel et al., arXiv:2201.06640).

A layer is a convolution or a dense layer, counted in the order in which the modules of a network are registered. What
is registered behind the first of the last k, norm layers above all, goes with them. The last of as many layers as there
are is the whole network, position embeddings and the like included.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from unlearn.layers import scope
from unlearn.session import current, session
from unlearn.settings import SettingError
from unlearn.streams import Streams

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def last_modules(model: nn.Module, k: int) -> list[nn.Module]:
    """Every module from the k-th last layer on. More layers than the model has are a `SettingError`."""
    modules = list(model.modules())
    layers = [number for number, module in enumerate(modules) if isinstance(module, LAYERS)]
    if k > len(layers):
        raise SettingError("method.k", k, f"must be at most {len(layers)}, the convolutions and dense layers there are")
    return modules if k == len(layers) else modules[layers[-k] :]


def check_last(lab: Any, k: int) -> None:
    """The model has k layers, and what `layers` leaves to train is among the last k. Raises `SettingError`."""
    model = lab.training.initialised(Streams("check"))
    with session(), scope(model, lab.layers), only_last(model, k):
        pass


@contextmanager
def only_last(model: nn.Module, k: int) -> Iterator[list[nn.Module]]:
    """Inside the block only the last k layers learn; every other module is in eval mode in every forward pass.

    Gives the modules that learn, and tells the history how many parameters that is. Of these layers only what already
    requires a gradient learns, as within a layer scope; nothing at all is a `SettingError`.
    """
    modules = last_modules(model, k)
    inside = {id(parameter) for module in modules for parameter in module.parameters(recurse=False)}
    others = [module for module in model.modules() if not any(module is last for last in modules)]
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    if not any(flag and id(parameter) in inside for parameter, flag in flags.items()):
        raise SettingError("method.k", k, "leaves nothing to train, beside what `layers` and the model itself freeze")

    def settle(*_: Any) -> None:
        for module in others:
            module.training = False

    for parameter, flag in flags.items():
        parameter.requires_grad_(flag and id(parameter) in inside)
    trained = sum(parameter.numel() for parameter in flags if parameter.requires_grad)
    share = trained / sum(parameter.numel() for parameter in flags)
    current().history.append({"trained_parameters": trained, "trained_share": share})
    hook = model.register_forward_pre_hook(settle)
    try:
        yield modules
    finally:
        hook.remove()
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
