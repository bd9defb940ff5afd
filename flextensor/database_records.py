"""What a database holds, as JSON values: one flat object per trial or result.

The same objects are the lines of an export. They are checked field by field whenever they come
from outside (a file, another database, a caller): text may be wrong, but it stays text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flextensor.errors import DatabaseError
from flextensor.targets.base import Status, Trial

Record = dict[str, Any]
"""One trial or result; ``record["record"]`` says which."""

TIMED = Status.OK.value


def dump(value: Any) -> str:
    """`value` as JSON, the same text for equal values; `ValueError` for what JSON cannot hold."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def parse(text: str | bytes) -> Any:
    """JSON `text` as a value; `ValueError` for anything else, NaN and Infinity included."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except TypeError:
        raise ValueError("not text") from None


def storable(text: str) -> str:
    """`text` with what UTF-8 cannot hold (half a surrogate pair) replaced."""
    return text.encode(errors="replace").decode()


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _text(value: Any) -> bool:
    return type(value) is str and value == storable(value)


def _number(value: Any) -> bool:
    """Whether `value` is finite and not negative."""
    return type(value) in (int, float) and 0 <= value < math.inf and float(value) < math.inf


def _scalar(value: Any) -> bool:
    return type(value) in (bool, int, str) or type(value) is float and math.isfinite(value)


def _config_value(value: Any) -> bool:
    return _scalar(value) or type(value) is list and all(map(_config_value, value))


def _param_value(value: Any) -> bool:
    nested = type(value) is list and all(map(_param_value, value))
    return value is None or _scalar(value) or nested


def _mapping(value: Any, inner: Callable[[Any], bool]) -> bool:
    return type(value) is dict and all(_text(k) and inner(v) for k, v in value.items())


def _params(value: Any) -> bool:
    return _mapping(value, _param_value)


def _config(value: Any) -> bool:
    return _mapping(value, _config_value)


def _id(value: Any) -> bool:
    return type(value) is str and re.fullmatch("[0-9a-f]{32}", value) is not None


def _times(value: Any) -> bool:
    return type(value) is list and all(_number(t) and t > 0 for t in value)


def _seed(value: Any) -> bool:
    return value is None or type(value) is int and -(2**63) <= value < 2**63


_Rule = tuple[Callable[[Any], bool], str]
_TEXT: _Rule = (_text, "text")
_SECONDS: _Rule = (_number, "a finite number of seconds, at least 0")
_COMMON: dict[str, _Rule] = {
    "record": (_text, "text"),
    "id": (_id, "32 hexadecimal digits"),
    "workload": _TEXT,
    "target": _TEXT,
    "created": _SECONDS,
    "version": _TEXT,
}
_RULES: dict[str, dict[str, _Rule]] = {
    "trial": {
        **_COMMON,
        "operator": _TEXT,
        "params": (_params, "an object of plain values"),
        "session": _TEXT,
        "seed": (_seed, "an integer of 64 bits or null"),
        "formulation": _TEXT,
        "config": (_config, "numbers, text, booleans and lists"),
        "status": (lambda v: v in list(Status), f"one of {', '.join(Status)}"),
        "times": (_times, "a list of finite positive seconds"),
        "message": _TEXT,
        "error": (lambda v: v is None or _number(v), "a finite number, at least 0, or null"),
        "build_seconds": _SECONDS,
        "run_seconds": _SECONDS,
    },
    "result": {**_COMMON, "result": (lambda v: type(v) is dict, "an object")},
}


def check(record: Any) -> Record:
    """A copy of `record` when its fields are all there and right; else `ValueError` names one."""
    kind = record.get("record") if type(record) is dict else None
    if type(kind) is not str or kind not in _RULES:
        raise ValueError("neither a trial nor a result")
    rules = _RULES[kind]
    if missing := sorted(rules.keys() - record.keys()):
        raise ValueError(f"{kind} without {missing[0]}")
    if surplus := sorted(record.keys() - rules.keys()):
        raise ValueError(f"{kind} with the unknown field {surplus[0]!r}")
    for field, (holds, wanted) in rules.items():
        if not _guarded(holds, record[field]):
            raise ValueError(f"{field} must be {wanted}, got {shown(record[field])}")
    if kind == "trial" and bool(record["times"]) != (record["status"] == TIMED):
        what = "needs" if record["status"] == TIMED else "cannot have"
        raise ValueError(f"a trial with status {record['status']} {what} times")
    dump(record)  # a result may hide an infinity: 1e999 is valid JSON
    return dict(record)


def _guarded(holds: Callable[[Any], bool], value: Any) -> bool:
    try:
        return holds(value)
    except (OverflowError, RecursionError, TypeError):
        return False


def shown(value: Any) -> str:
    """`value` in at most 60 printable ASCII characters, for a message."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # an int of a million digits, a list of lists of ...
        return f"a huge {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON values; a user's function may have any, which become text."""

    def value(v: Any) -> Any:
        if isinstance(v, list | tuple):
            return [value(x) for x in v]
        return v if v is None or _scalar(v) else str(v)

    return {name: value(v) for name, v in params.items()}


def parameters(text: Any) -> dict[str, Any]:
    """The parameters of a workload from their JSON; `ValueError` unless they are plain values."""
    params = parse(text)
    if not _guarded(_params, params):
        raise ValueError("params must be an object of plain values")
    return dict(params)


def of_trial(trial: Trial) -> Record:
    """The fields of `trial` in a record.

    A message is made storable, and an `error` that is not finite is absent: the message says it.
    """
    finite = trial.error is not None and math.isfinite(trial.error)
    return {
        "formulation": trial.formulation,
        "config": dict(trial.config),
        "status": str(trial.status),
        "times": list(trial.times),
        "message": storable(trial.message),
        "error": trial.error if finite else None,
        "build_seconds": trial.build_seconds,
        "run_seconds": trial.run_seconds,
    }


def to_trial(record: Record) -> Trial:
    """The trial of a checked record."""
    return Trial(
        formulation=record["formulation"],
        config=record["config"],
        status=Status(record["status"]),
        times=tuple(map(float, record["times"])),
        message=record["message"],
        error=None if record["error"] is None else float(record["error"]),
        build_seconds=float(record["build_seconds"]),
        run_seconds=float(record["run_seconds"]),
    )


def distance(params: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """How far apart two parameter sets are, in doublings; None where one cannot guide the other.

    Integers count by their logarithm, a boolean that differs counts as one doubling, and
    everything else (text, lists, names) must be equal.
    """
    if params.keys() != other.keys():
        return None
    total = 0.0
    for name, a in params.items():
        b = other[name]
        if type(a) is not type(b):
            return None
        if type(a) is int:
            total += (_log(a) - _log(b)) ** 2
        elif type(a) is bool:
            total += a != b
        elif a != b:
            return None
    return math.sqrt(total)


def _log(value: int) -> float:
    """log2 that takes 0, the usual padding, and the negative numbers of a user's operator."""
    return math.copysign(math.log2(1 + abs(value)), value)


def header(schema: int) -> dict[str, Any]:
    """The first line of an export."""
    return {"flextensor": "trials", "schema": schema}


def read_lines(path: Path, newest: int) -> Iterator[Record]:
    """The checked records of the export `path`, of schema `newest` or older.

    `DatabaseError` names file and line of the first that is wrong.
    """
    number = 0
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                value = parse(line)
                if number > 1:
                    yield check(value)
                else:
                    _check_header(value, newest)
            if not number:
                raise ValueError("empty, not an export")
    except ValueError as error:
        raise DatabaseError(f"{path}:{max(number, 1)}: {error}") from error
    except OSError as error:
        raise DatabaseError(f"{path}: cannot read: {error.strerror}") from error


def _check_header(value: Any, newest: int) -> None:
    schema = value.get("schema") if type(value) is dict else None
    if type(schema) is not int or value != header(schema) or schema < 1:
        raise ValueError("not the header of an export")
    if schema > newest:
        raise ValueError(f"has schema {schema}, this flextensor knows {newest}")
