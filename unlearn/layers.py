"""Layer scope: let a method change only the first, the middle or the last layers of a model.

Tran & Woo (WWW Companion 2025, arXiv:2504.13610) report that the intermediate and last layers suffice. The paper's
split is not public; ours divides the repeated blocks of a network in three, a stem going with the first and a head with
the last: stem + layer1 | layer2 + layer3 | layer4 + head for a ResNet of four stages, thirds of a transformer's blocks.
Of two blocks none is in the middle, and a single one goes with the stem. A transformer's last norm is part of its head.
Frozen layers keep their parameters and their norm statistics, bit for bit, and the backward pass ends where they begin.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

from torch import nn

from unlearn.session import current
from unlearn.settings import SettingError

SCOPES = ("all", "first", "intermediate", "last", "intermediate+last", "head")


def units(net: nn.Module) -> list[list[str]]:
    """Names of a network's children in order of use: the stem, every block, and the head.

    Blocks are the members of `blocks` (transformers, fastnet), what lies between max-pools of a plain sequence or of
    `features` (convnet, VGG), the children called `layer...` (ResNets), or else every child but the first and last.
    A plain sequence's head is its last child, and what lies between the last pool and it if that has no parameters; a
    sequence that only pads a network, as around a transformer, has that network's parts.
    """
    names = [name for name, _ in net.named_children()]
    if "blocks" in names:
        members = [[f"blocks.{name}"] for name, _ in net.get_submodule("blocks").named_children()]
        return [_before(names, "blocks"), *members, _after(names, "blocks")]
    if "features" in names:
        return [[], *_between_pools(net.get_submodule("features"), "features."), _after(names, "features")]
    if isinstance(net, nn.Sequential):
        *groups, ending = _between_pools(net, "")
        before, head = ending[:-1], net[-1]
        if any(True for name in before for _ in net.get_submodule(name).parameters()):
            return [[], *groups, before, ending[-1:]]
        if not groups and list(head.children()):
            return [[f"{ending[-1]}.{name}" for name in unit] for unit in units(head)]
        return [[], *groups, ending]
    blocks = [name for name in names if name.startswith("layer")] or names[1:-1]
    return [_before(names, blocks[0]), *[[name] for name in blocks], _after(names, blocks[-1])]


def trained_modules(net: nn.Module, layers: str | Sequence[str]) -> list[str]:
    """Names of the modules that a scope trains. Raises `SettingError` for a scope that this network does not have."""
    if layers == "all":
        return [""]  # of any network, whatever its parts
    stem, *blocks, head = units(net)
    third = max(1, len(blocks) // 3)
    start = max(third, len(blocks) - third)  # of the last part, behind the first
    first, intermediate, last = [stem, *blocks[:third]], blocks[third:start], [*blocks[start:], head]
    parts = {"first": first, "intermediate": intermediate, "last": last, "intermediate+last": intermediate + last}
    if isinstance(layers, str):
        chosen = list(chain.from_iterable((parts | {"head": [head]}).get(layers, [])))
    else:
        chosen = list(layers)
    known = dict(net.named_modules())
    if not chosen or not all(name in known for name in chosen):
        allowed = f"must be one of {', '.join(SCOPES)}, or names of this model's modules: "
        raise SettingError("layers", layers, allowed + ", ".join(chain(stem, *blocks, head)))
    return chosen


@contextmanager
def scope(model: nn.Module, layers: str | Sequence[str]) -> Iterator[None]:
    """Inside the block only the chosen layers of `model`, a normalisation and a network, learn or keep statistics."""
    net = list(model.children())[-1]
    chosen = trained_modules(net, layers)
    flags = {parameter: parameter.requires_grad for parameter in net.parameters()}
    for name, parameter in net.named_parameters():
        inside = any(_within(name, module) for module in chosen)
        # A transformer's position embedding is a parameter of the network itself and goes with its stem.
        with_stem = layers == "first" and not any(_within(name, module) for module in chain(*units(net)))
        parameter.requires_grad_(parameter.requires_grad and (inside or with_stem))
    norms = {
        name: module for name, module in net.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    now = current()
    now.frozen = [norm for name, norm in norms.items() if not any(_within(name, module) for module in chosen)]
    try:
        yield
    finally:
        now.frozen = []
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def _within(name: str, module: str) -> bool:
    return module == "" or name == module or name.startswith(f"{module}.")


def _before(names: Sequence[str], name: str) -> list[str]:
    return list(names[: names.index(name)])


def _after(names: Sequence[str], name: str) -> list[str]:
    return list(names[names.index(name) + 1 :])


def _between_pools(sequence: nn.Module, prefix: str) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    for name, module in sequence.named_children():
        groups[-1].append(prefix + name)
        if isinstance(module, nn.MaxPool2d):
            groups.append([])
    return [group for group in groups if group]
