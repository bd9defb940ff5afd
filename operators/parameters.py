"""The parameters of a user's function: checked against its signature, converted from text."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any

from flextensor.errors import InputError, unknown
from flextensor.operators.base import convert

_KINDS = (int, float, bool, str)


def bind(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter of `function` by name: as given, converted to its annotation, or default.

    A parameter without annotation has the type of its default; None says nothing. Raises
    `InputError` for unknown and missing parameters and for values that do not convert.
    """
    name = function.__name__
    try:
        parameters = inspect.signature(function, eval_str=True).parameters
    except (ValueError, TypeError, NameError) as error:
        raise InputError(f"cannot read the parameters of {name}: {error}") from None
    for p in parameters.values():
        if p.kind not in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            raise InputError(f"{name}: parameter {p} cannot be given by name")
    for field in given:
        if field not in parameters:
            if not parameters:
                raise InputError(f"{name} has no fields, got {field}")
            raise unknown(f"field of {name}", field, parameters)
    if missing := [f for f, p in parameters.items() if p.default is p.empty and f not in given]:
        raise InputError(f"{name}: no value for {', '.join(missing)}; give {missing[0]}=...")
    return {
        field: _value(f"{name}: {field}", given[field], p) if field in given else p.default
        for field, p in parameters.items()
    }


def _value(what: str, value: Any, parameter: inspect.Parameter) -> Any:
    """`value` in the type of `parameter`; one of another type than text has is left as it is."""
    kinds = _kinds(parameter)
    named = kinds - {NoneType, Any}
    if not named:
        return _guess(value) if isinstance(value, str) else value
    kind = named.pop()
    if named or kind not in _KINDS:
        if isinstance(value, str):
            known = ", ".join(k.__name__ for k in _KINDS)
            raise InputError(f"{what} cannot be read from text; annotate it as one of {known}")
        return value
    if value is None and NoneType in kinds:
        return None
    if isinstance(value, str):
        return convert(what, value, kind.__name__)
    exact = type(value) is kind or (kind is float and type(value) is int)
    if not exact:
        raise InputError(f"{what} must be of type {kind.__name__}, got {value!r}")
    return kind(value)


def _kinds(parameter: inspect.Parameter) -> set[Any]:
    """The types that a parameter may have by its annotation and its default; none when it says
    nothing.

        pad: int | None = 3  ->  int, NoneType        mode: Literal["a", "b"]  ->  str
    """
    said, default = parameter.annotation, parameter.default
    kinds = set() if default is not None else {NoneType}
    if said is parameter.empty:
        return kinds if default is parameter.empty else kinds | {type(default)}
    if typing.get_origin(said) is typing.Literal:
        return kinds | {type(value) for value in typing.get_args(said)}
    if typing.get_origin(said) in (types.UnionType, typing.Union):
        return kinds | set(typing.get_args(said))
    return kinds | {said}


def _guess(text: str) -> int | float | str:
    """`text` as the narrowest type that it reads as, for a parameter that says nothing."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
