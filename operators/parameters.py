"""The parameters of a user's function: checked against its signature, converted from text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from flextensor.errors import InputError, unknown
from flextensor.operators.base import convert

_KINDS = (int, float, bool, str)


def bind(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter of `function` by name: as given, converted to its annotation, or default.

    A parameter without annotation has the type of its default. Raises `InputError` for unknown
    and missing parameters and for values that do not convert.
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
    """`value` in the type of `parameter`."""
    kind = parameter.annotation
    if kind is parameter.empty:
        kind = type(parameter.default) if parameter.default is not parameter.empty else None
    if kind not in _KINDS:
        return _guess(value) if kind is None and isinstance(value, str) else value
    if isinstance(value, str):
        return convert(what, value, kind.__name__)
    exact = type(value) is kind or (kind is float and type(value) is int)
    if not exact:
        raise InputError(f"{what} must be of type {kind.__name__}, got {value!r}")
    return kind(value)


def _guess(text: str) -> int | float | str:
    """`text` as the narrowest type that it reads as, for a parameter that says nothing."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
