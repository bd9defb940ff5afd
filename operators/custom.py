"""A user's own operator: a plain function that returns TVM tensors.

    def correlation(height: int = 64, width: int = 64, reach: int = 4):
        a = te.placeholder((height, width), name="a")
        ...
        return [a, b, out]          # inputs first, the output last

Its parameters are the operator's fields. A function ``correlation_reference(a, b)`` beside it, if
there is one, gets NumPy arrays, floats and int8 in float64 and other integers as they are, and
returns the expected output; without it the program itself, unscheduled and in float64, is the
reference. A function ``correlation_inputs(rng)`` draws the inputs from a NumPy generator, where
whatever `Operator.inputs` draws will not do: places in a table, say.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from flextensor.errors import InputError, unknown
from flextensor.operators.base import Operator, Tensors
from flextensor.operators.parameters import bind
from flextensor.operators.program import float64_reference, flops, structural_key

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclasses.dataclass(frozen=True, init=False)
class FunctionOperator(Operator):
    """The operator that `function` describes with the parameters `values`.

    Raises `InputError` for unknown, missing or ill-typed parameters, and when the function fails
    or does not return a list of TVM tensors that ends with a computed one.
    """

    name: ClassVar[str] = "custom"
    has_peer: ClassVar[bool] = False

    function: Callable[..., Any]
    values: tuple[tuple[str, Any], ...]
    companion: Callable[..., Any] | None
    draw: Callable[..., Any] | None
    source: str = dataclasses.field(compare=False)

    def __init__(
        self,
        function: Callable[..., Any],
        params: Mapping[str, Any],
        reference: Callable[..., Any] | None = None,
        source: str = "",
        inputs: Callable[..., Any] | None = None,
    ) -> None:
        """`params` may be text, as from a command line; `source` is a ``file.py:function``."""
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "values", tuple(bind(function, params).items()))
        object.__setattr__(self, "companion", reference)
        object.__setattr__(self, "draw", inputs)
        object.__setattr__(self, "source", source)
        self.__post_init__()

    def check(self) -> None:
        self._program  # noqa: B018 - builds the program, and so finds every mistake in it

    def __reduce__(self) -> tuple[Any, ...]:
        if self.source:  # a function of a loaded file cannot be pickled by name
            return from_file, (self.source, self.params())
        return FunctionOperator, (self.function, self.params(), self.companion, "", self.draw)

    def params(self) -> Mapping[str, Any]:
        return dict(self.values)

    def key(self) -> str:
        """``custom-`` and 16 hex digits of the program's structure: names play no part in it."""
        return f"custom-{structural_key(self._program)}"

    def compute(self) -> Tensors:
        tensors = _guard(self.function, **self.params())
        _check_tensors(self.function.__name__, tensors)
        return list(tensors)

    def flops(self) -> int:
        return flops(self._program)

    def torch(self, *inputs: torch.Tensor) -> torch.Tensor:
        raise InputError(f"{self.function.__name__}: a custom operator has no PyTorch peer")

    def inputs(self, rng: np.random.Generator) -> list[np.ndarray[Any, Any]] | None:
        import numpy as np

        if self.draw is None:
            return None
        drawn, name = _guard(self.draw, rng), self.draw.__name__
        if not isinstance(drawn, list | tuple):
            raise InputError(f"{name} must return a list of arrays, got {type(drawn).__name__}")
        arrays = [np.asarray(a) for a in drawn]
        shapes = [[int(n) for n in p.shape] for p in self._program.params[:-1]]
        if (own := [list(a.shape) for a in arrays]) != shapes:
            raise InputError(f"{name} returned arrays of shapes {own}, not {shapes}")
        return arrays

    def reference(self, inputs: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        import numpy as np

        if self.companion is None:
            return float64_reference(self._program, inputs)
        whole = [x.dtype.kind in "iub" and x.dtype != np.int8 for x in inputs]
        wide = [x if w else x.astype(np.float64) for x, w in zip(inputs, whole, strict=True)]
        out = np.asarray(_guard(self.companion, *wide), np.float64)
        shape = tuple(int(n) for n in self._program.params[-1].shape)
        if out.shape != shape:
            raise InputError(
                f"{self.companion.__name__} returned shape {list(out.shape)}, not {list(shape)}"
            )
        return out

    @cached_property
    def _program(self) -> Any:
        from tvm import te

        return _guard(te.create_prim_func, self.compute(), what=self.function.__name__)


def from_file(spec: str, params: Mapping[str, Any]) -> FunctionOperator:
    """The operator ``path/to/my_op.py:my_op``, with the reference ``my_op_reference`` and inputs
    from ``my_op_inputs`` where they are defined.

    Raises `InputError` when the file or the function is missing or fails; nothing is registered.
    """
    path, colon, name = spec.rpartition(":")
    if not colon or not name.isidentifier():
        raise InputError(f"an operator in a file is written path.py:function, got {spec!r}")
    module = _load(Path(path))
    function = getattr(module, name, None)
    if not callable(function):
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", 0) == module.__name__]
        raise (
            unknown(f"function of {path}", name, own)
            if own
            else InputError(f"{path} defines no function, so not {name!r}")
        )
    companion = getattr(module, f"{name}_reference", None)
    inputs = getattr(module, f"{name}_inputs", None)
    source = f"{Path(path).resolve()}:{name}"
    return FunctionOperator(function, params, companion, source, inputs)


def _load(path: Path) -> ModuleType:
    """The module in the file `path`, executed."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"cannot read {path}: {reason}") from None
    module = ModuleType(f"flextensor_custom_{path.stem}")
    module.__file__ = str(path)
    try:
        code = compile(text, str(path), "exec")
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise InputError(f"{path}:{line}: {_first_line(error)}") from None
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        _guard(exec, code, module.__dict__, what=str(path))
    finally:
        del sys.modules[module.__name__]
    return module


def _guard(function: Callable[..., Any], *args: Any, what: str = "", **kwargs: Any) -> Any:
    """The result of the user's `function`; what it raises becomes one line with its place."""
    try:
        return function(*args, **kwargs)
    except (Exception, SystemExit) as error:
        code = getattr(function, "__code__", None)
        place = _place(error, code.co_filename if code else what) or what or function.__name__
        raise InputError(f"{place}: {_first_line(error)}") from error


def _place(error: BaseException, file: str) -> str:
    """``file:line`` of the deepest frame of `error` in `file`, or nothing."""
    place, frame = "", error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == file:
            place = f"{file}:{frame.tb_lineno}"
        frame = frame.tb_next
    return place


def _first_line(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _check_tensors(name: str, tensors: Any) -> None:
    """Raise `InputError` unless `tensors` are placeholders and then one computed tensor."""
    from tvm import te, tirx

    if not isinstance(tensors, list | tuple) or not tensors:
        nothing = tensors is None or isinstance(tensors, list | tuple)  # a tensor has no truth
        what = "nothing" if nothing else type(tensors).__name__
        raise InputError(f"{name} must return a list of TVM tensors, got {what}")
    for tensor in tensors:
        if not isinstance(tensor, te.Tensor):
            raise InputError(f"{name} returned a {type(tensor).__name__} among its tensors")
        if not all(isinstance(n, tirx.IntImm) for n in tensor.shape):
            raise InputError(f"{name}: the shape of {tensor.op.name} is not constant")
        if any(int(n) < 1 for n in tensor.shape):
            shape = [int(n) for n in tensor.shape]
            raise InputError(f"{name}: tensor {tensor.op.name} has the empty shape {shape}")
    *inputs, output = tensors
    if isinstance(output.op, te.PlaceholderOp):
        raise InputError(f"{name}: the last tensor, {output.op.name}, is an input, not the output")
    for tensor in inputs:
        if not isinstance(tensor.op, te.PlaceholderOp):
            raise InputError(f"{name}: {tensor.op.name} is computed; only the last tensor may be")
    stack, seen = [output], set(inputs)
    while stack:
        tensor = stack.pop()
        if isinstance(tensor.op, te.PlaceholderOp) and tensor not in seen:
            raise InputError(f"{name} uses the input {tensor.op.name} but does not return it")
        stack.extend(t for t in tensor.op.input_tensors if t not in seen)
        seen.add(tensor)
