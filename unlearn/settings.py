"""What a setting may be: the types that signatures use, and the one error a bad setting ends in.

A callable's annotations are its schema: `build` checks every key of a YAML against them before anything is trained.
"""

import functools
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import pydantic
from annotated_types import Ge, Gt, Le, Lt, MinLen
from hydra.errors import InstantiationException
from hydra.utils import instantiate

Share = Annotated[float, Gt(0), Lt(1)]
Probability = Annotated[float, Ge(0), Le(1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Count = Annotated[int, Gt(0)]
Index = Annotated[int, Ge(0)]
Name = Annotated[str, MinLen(1)]

MOST = 1e30
"""Of a number: float32 holds little more, and a learning rate is multiplied before it becomes one."""
LONGEST = 18
"""Digits of a whole number, so that it fits into 64 bits."""
HYDRAS = ("_args_", "_partial_", "_convert_", "_recursive_")
"""Keys by which a YAML would steer Hydra's `instantiate`; none is a setting."""


class SettingError(ValueError):
    """A setting that cannot work: names the key, the value, and what is allowed, in one line."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        self.key, self.value, self.allowed = key, value, allowed
        super().__init__(key, value, allowed)

    def __str__(self) -> str:
        return f"{self.key}={self.value}: {self.allowed}"


def check(kind: Any, key: str, value: object) -> Any:
    """Return `value` as the annotated type `kind`, or raise a `SettingError` that names `key`.

    A `SettingError` of a validator in `kind` names its key relative to `key`; an empty one is `key` itself.
    """
    # Infinity has no place in JSON, and so in no recipe
    config = pydantic.ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    try:
        found = pydantic.TypeAdapter(kind, config=config).validate_python(value)
    except pydantic.ValidationError as error:
        inner = error.errors()[0].get("ctx", {}).get("error")
        if isinstance(inner, SettingError):
            raise SettingError(f"{key}.{inner.key}".rstrip("."), inner.value, inner.allowed) from error
        refusal = _refusal(key, value, error)
        if refusal.key == key and type(None) in typing.get_args(kind):  # of which pydantic says nothing
            refusal = SettingError(refusal.key, refusal.value, f"{refusal.allowed}, or null")
        raise refusal from error
    if wrong := _mistaken(value, found):
        raise SettingError(key, value, wrong)
    return found


def _refusal(key: str, value: Any, error: pydantic.ValidationError) -> SettingError:
    """What pydantic says: of the first item that is wrong, or of every kind that a value may be of."""
    branches = {
        its["loc"][:1]: its for its in reversed(error.errors()) if its["loc"] and isinstance(its["loc"][0], str)
    }
    if len(branches) < 2:
        first = error.errors()[0]
        for part in first["loc"]:
            if isinstance(part, int):
                key, value = f"{key}.{part}", value[part] if isinstance(value, Sequence) else value
        return SettingError(key, value, _allowed(first["msg"]))
    said = [
        ("each of a list " if any(isinstance(part, int) for part in its["loc"]) else "") + _allowed(its["msg"])
        for its in reversed(branches.values())
    ]
    return SettingError(key, value, ", or ".join(dict.fromkeys(said)))


def _allowed(said: str) -> str:
    return (said[0].lower() + said[1:]).replace("input should be", "must be").replace("string should", "must")


def _mistaken(value: object, found: object) -> str | None:
    """What pydantic lets pass: true as the number 1, 1 as true, and numbers that nothing can compute with."""
    if isinstance(value, list | tuple) and isinstance(found, list | tuple):
        return next(filter(None, map(_mistaken, value, found)), None)
    if isinstance(value, bool) and not isinstance(found, bool):
        return "must be a number, not true or false"
    if isinstance(found, bool) and isinstance(value, int | float) and not isinstance(value, bool):
        return "must be true or false"
    if isinstance(found, float) and abs(found) > MOST:
        return f"must be at most {MOST:g} in size"
    if isinstance(found, int) and abs(found) >= 10**LONGEST:
        return f"must have at most {LONGEST} digits"
    return None


def build(settings: Mapping[str, Any], group: str) -> functools.partial[Any]:
    """Turn a YAML's `_target_` and keys into a partial whose every keyword has been checked against its annotation.

    Objects are given to the partial later and never to Hydra, which would turn them into configs (hydra#2591).
    """
    for name in HYDRAS:
        if name in settings:
            raise SettingError(f"{group}.{name}", settings[name], "is not a setting")
    if not isinstance(settings.get("_target_"), str):
        raise SettingError(f"{group}._target_", settings.get("_target_", "nothing"), "must name a function")
    try:
        target: functools.partial[Any] = instantiate(settings, _partial_=True, _convert_="all")
    except InstantiationException as error:
        raise SettingError(f"{group}._target_", settings["_target_"], " ".join(str(error).split())) from error
    _check_names(target, settings, group)
    hints = typing.get_type_hints(inspect.unwrap(target.func), include_extras=True)
    keywords = {name: check(hints.get(name, Any), f"{group}.{name}", value) for name, value in target.keywords.items()}
    return functools.partial(target.func, **keywords)


def _check_names(target: functools.partial[Any], settings: Mapping[str, Any], group: str) -> None:
    """Every setting is one that the callable knows, and none is left out, by `~group.name` say."""
    known = keyword_only(target.func)
    for name, value in target.keywords.items():
        if name not in known:
            allowed = f"is no setting of {target.func.__name__}, which has {', '.join(known) or 'none'}"
            raise SettingError(f"{group}.{name}", value, allowed)
    for name in known:
        if name not in settings and not target.func.__kwdefaults__:
            raise SettingError(f"{group}.{name}", "nothing", f"must be given: {target.func.__name__} has no default")


def checked(settings: Mapping[str, Any], built: functools.partial[Any]) -> dict[str, Any]:
    """The settings that `build` was given, each as its check left it: 1 where a float is asked for has become 1.0."""
    return {key: built.keywords.get(key, value) for key, value in settings.items()}


def keyword_only(function: Callable[..., Any]) -> list[str]:
    """Names of the keyword-only parameters: exactly the keys that its YAML must have."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def companion(target: functools.partial[Any], name: str, *otherwise: Any) -> Any:
    """What the module of a built callable declares beside it, such as a method's `NEEDS` or an auditor's `METRICS`.

    A module that does not declare it is an error, unless `otherwise` says what it then is.
    """
    return getattr(sys.modules[target.func.__module__], name, *otherwise)
