"""A user's own operator from a function or a file."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flextensor.bundle_runner import random_input
from flextensor.errors import InputError
from flextensor.operators import FunctionOperator, Workload, from_file, registry

FILE = """
from __future__ import annotations
from typing import Any, Literal, Optional
import numpy as np
from tvm import te, tirx

def scores(n: int = 6, m: int = 5, scale: float = 2.0, act: bool = True):
    a = te.placeholder((n, m), name="a")
    b = te.placeholder((m, n), name="b")
    k = te.reduce_axis((0, m), "k")
    c = te.compute((n, n), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="c")
    if not act:
        return [a, b, c]
    return a, b, te.compute((n, n), lambda i, j: tirx.exp(c[i, j] / scale), name="d")

def renamed(size: int, *, other=5):
    x = te.placeholder((size, other), name="same")
    y = te.placeholder((other, size), name="same")
    r = te.reduce_axis((0, other), "q")
    s = te.compute((size, size), lambda u, v: te.sum(x[u, r] * y[r, v], axis=r), name="z")
    return [x, y, te.compute((size, size), lambda u, v: tirx.exp(s[u, v] / 2.0), name="same")]

def renamed_reference(x, y):
    assert x.dtype == np.float64
    return np.exp(x @ y / 2)

def wrong_shape(n: int = 2):
    a = te.placeholder((n,), name="a")
    return [a, te.compute((n,), lambda i: a[i] + 1.0, name="b")]

def wrong_shape_reference(a):
    return np.zeros(7)

def gather(rows: int = 50000, n: int = 40):
    table, at = te.placeholder((rows, 3), name="t"), te.placeholder((n,), "int32", name="at")
    return [table, at, te.compute((n, 3), lambda i, j: table[at[i], j], name="gathered")]

def gather_inputs(rng):
    return rng.standard_normal((50000, 3)), rng.integers(0, 50000, 40)

def raises(n: int = 1):
    raise RuntimeError("first\\nsecond")

def nothing(): pass
def numbers(): return [1, 2]
def bare(): return te.placeholder((3,), name="a")
def only_input(): return [te.placeholder((3,), name="a")]
def forgets():
    a = te.placeholder((3,), name="a")
    return [te.compute((3,), lambda i: a[i] * 2.0, name="b")]
def computed_input():
    a = te.placeholder((3,), name="a")
    b = te.compute((3,), lambda i: a[i] * 2.0, name="b")
    return [a, b, te.compute((3,), lambda i: b[i] * 2.0, name="c")]
def optional(n: int | None = None, m=None, k: Optional[int] = 4, mode: Literal["a", "b"] = "a",
             way: Any = None, size: tuple[int, int] = (3, 3), axes=(1, 2), both: int | str = 1):
    a = te.placeholder((2,), name="a")
    return [a, te.compute((2,), lambda i: a[i] + 1.0, name="b")]
def starred(*sizes): pass
def badly_typed(n: Unknown = 3): pass
"""


@pytest.fixture(scope="module")
def ops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("custom") / "ops.py"
    path.write_text(FILE)
    return path


def test_program_without_reference_is_its_own(
    ops: Path, error_of: Callable[[Workload, str], float]
) -> None:
    workload = Workload(from_file(f"{ops}:scores", {"n": "7", "scale": "3"}))
    assert workload.params == {"n": 7, "m": 5, "scale": 3.0, "act": True}
    assert error_of(workload, "direct") < 1e-5
    a, b = (x.astype("float64") for x in workload.inputs(1))
    np.testing.assert_allclose(workload.reference([a, b]), np.exp(a @ b / 3), rtol=1e-13)
    assert workload.flops == 7 * 7 * (2 * 5 + 2)  # multiply and add; divide and exp


def test_program_that_has_no_float64_version(ops: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(program: Any) -> Any:
        raise ValueError("no float64 version")

    monkeypatch.setattr("flextensor.operators.program.promote", refuse)
    workload = Workload(from_file(f"{ops}:scores", {}))
    a, b = workload.inputs(1)
    out = workload.reference([a, b])
    assert out.dtype == np.float64
    np.testing.assert_allclose(out, np.exp(a.astype("float64") @ b / 2), rtol=1e-4)


def test_companion_is_the_reference(ops: Path, error_of: Callable[[Workload, str], float]) -> None:
    workload = Workload(from_file(f"{ops}:renamed", {"size": "4"}))
    assert error_of(workload, "direct") < 1e-5
    assert not workload.operator.has_peer
    with pytest.raises(InputError, match="no PyTorch peer"):
        workload.operator.torch()


def test_key_is_the_structure(ops: Path) -> None:
    key = Workload(from_file(f"{ops}:scores", {})).key
    assert Workload(from_file(f"{ops}:renamed", {"size": 6})).key == key
    assert Workload(from_file(f"{ops}:scores", {"scale": 2.5})).key != key
    assert Workload(from_file(f"{ops}:scores", {"n": 7})).key != key
    assert len(key) == len("custom-") + 16


def test_key_is_the_same_in_a_fresh_process(ops: Path) -> None:
    workload = Workload(from_file(f"{ops}:scores", {"n": 9}))
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).key)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(workload),
        capture_output=True,
        env=os.environ | {"PYTHONHASHSEED": "77"},
    )
    assert result.stdout.decode().strip() == workload.key, result.stderr


def test_files_register_nothing(ops: Path) -> None:
    before = set(registry())
    from_file(f"{ops}:scores", {})
    assert set(registry()) == before
    assert not any("flextensor_custom" in name for name in sys.modules)


@pytest.mark.parametrize(
    ("function", "params", "message"),
    [
        ("score", {}, "unknown function of {file} 'score'; did you mean scores?"),
        ("np", {}, "unknown function of {file} 'np'; known"),
        ("scores", {"size": "3"}, "unknown field of scores 'size'; known: act, m"),
        ("nothing", {"n": "3"}, "nothing has no fields, got n"),
        ("renamed", {}, "renamed: no value for size; give size=..."),
        ("scores", {"n": "x"}, "scores: n must be an integer, got 'x'"),
        ("scores", {"n": 2.5}, "scores: n must be of type int, got 2.5"),
        ("scores", {"scale": "x"}, "scores: scale must be a number, got 'x'"),
        ("scores", {"act": "maybe"}, "scores: act must be true or false, got 'maybe'"),
        ("scores", {"n": 0}, "scores: tensor a has the empty shape [0, 5]"),
        ("raises", {}, "{file}:42: RuntimeError: first"),
        ("nothing", {}, "nothing must return a list of TVM tensors, got nothing"),
        ("numbers", {}, "numbers returned a int among its tensors"),
        ("bare", {}, "bare must return a list of TVM tensors, got Tensor"),
        ("only_input", {}, "the last tensor, a, is an input, not the output"),
        ("forgets", {}, "forgets uses the input a but does not return it"),
        ("computed_input", {}, "b is computed; only the last tensor may be"),
        ("optional", {"n": "x"}, "optional: n must be an integer, got 'x'"),
        ("optional", {"n": 2.5}, "optional: n must be of type int, got 2.5"),
        ("optional", {"size": "3"}, "optional: size cannot be read from text; annotate it as"),
        ("optional", {"axes": "3"}, "optional: axes cannot be read from text; annotate it as"),
        ("optional", {"both": "3"}, "optional: both cannot be read from text; annotate it as"),
        ("starred", {}, "starred: parameter *sizes cannot be given by name"),
        ("badly_typed", {}, "cannot read the parameters of badly_typed: name 'Unknown'"),
    ],
)
def test_bad_functions(ops: Path, function: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        Workload(from_file(f"{ops}:{function}", params))
    assert message.format(file=ops) in str(error.value)
    assert "\n" not in str(error.value)


def test_parameters_that_may_be_none(ops: Path) -> None:
    plain = from_file(f"{ops}:optional", {}).params()
    assert (plain["n"], plain["m"], plain["k"]) == (None, None, 4)
    text = {"n": "3", "m": "3", "k": "5", "mode": "b", "way": "3"}
    given = from_file(f"{ops}:optional", text).params()
    assert [given[name] for name in text] == [3, 3, 5, "b", 3]
    values = {"n": None, "m": None, "k": None, "mode": "b", "size": (1, 2), "axes": [1], "both": 2}
    operator = from_file(f"{ops}:optional", values)
    assert {name: operator.params()[name] for name in values} == values
    assert pickle.loads(pickle.dumps(operator)).params() == operator.params()


def test_reference_of_the_wrong_shape(ops: Path) -> None:
    workload = Workload(from_file(f"{ops}:wrong_shape", {}))
    with pytest.raises(InputError, match=r"wrong_shape_reference returned shape \[7\], not \[2\]"):
        workload.reference(workload.inputs(0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nraise KeyError('gone')\n", "broken.py:2: KeyError: 'gone'"),
        ("def f(:\n", "broken.py:1: SyntaxError: "),
        ("import sys\nsys.exit(3)\n", "broken.py:2: SystemExit: 3"),
        ("x = 1\n", "broken.py defines no function, so not 'f'"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        from_file(f"{path}:f", {})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["missing.py:f", "no_colon.py", "/:f"])
def test_missing_files(spec: str) -> None:
    with pytest.raises(InputError, match="cannot read|is written path.py:function"):
        from_file(spec, {})


def test_plain_function_with_reference() -> None:
    from tvm import te

    def double(n: int = 3) -> list[Any]:
        a = te.placeholder((n,), name="a")
        return [a, te.compute((n,), lambda i: a[i] * 2.0, name="b")]

    workload = Workload(FunctionOperator(double, {"n": 5}, reference=lambda a: 2 * a))
    assert workload.reference([np.ones(5, "float32")]).tolist() == [2.0] * 5
    assert workload.operator == FunctionOperator(double, {"n": 5}, workload.operator.companion)  # type: ignore[attr-defined]


def test_a_reference_gets_float64_for_whatever_a_product_would_overflow() -> None:
    from tvm import te

    dtypes = ("bfloat16", "float16", "int8", "uint8", "int32", "bool")

    def many() -> list[Any]:
        inputs = [te.placeholder((3,), dtype, name=f"x{n}") for n, dtype in enumerate(dtypes)]
        total = sum((x[0].astype("float32") for x in inputs[1:]), inputs[0][0].astype("float32"))
        return [*inputs, te.compute((3,), lambda i: total, name="total")]

    def reference(*inputs: Any) -> Any:
        seen.extend(str(x.dtype) for x in inputs)
        return np.zeros(3)

    seen: list[str] = []
    workload = Workload(FunctionOperator(many, {}, reference))
    workload.reference(workload.inputs(0))
    assert seen == ["float64", "float64", "float64", "uint8", "int32", "bool"]


def test_companion_draws_the_inputs(ops: Path) -> None:
    workload = Workload(from_file(f"{ops}:gather", {}))
    again = pickle.loads(pickle.dumps(workload))
    table, places = workload.inputs(0)
    assert (str(table.dtype), str(places.dtype)) == ("float32", "int32")
    assert places.max() > 40000
    assert all(
        np.array_equal(a, b) for a, b in zip(workload.inputs(0), again.inputs(0), strict=True)
    )
    assert not np.array_equal(places, workload.inputs(1)[1])
    np.testing.assert_array_equal(workload.reference([table, places]), table[places])


def test_a_companion_of_a_function_is_carried_along() -> None:
    operator = FunctionOperator(ones, {"n": 4}, inputs=threes)
    workload = pickle.loads(pickle.dumps(Workload(operator)))
    assert workload == Workload(operator) != Workload(FunctionOperator(ones, {"n": 4}))
    assert workload.inputs(0)[0].tolist() == [3] * 4


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(
        InputError, match=r"threes returned arrays of shapes \[\[4\]\], not \[\[5\]\]"
    ):
        Workload(FunctionOperator(ones, {"n": 5}, inputs=threes)).inputs(0)
    with pytest.raises(InputError, match="must return a list of arrays, got int"):
        Workload(FunctionOperator(ones, {}, inputs=lambda rng: 3)).inputs(0)


def ones(n: int = 4) -> list[Any]:
    from tvm import te

    a = te.placeholder((n,), "int16", name="a")
    return [a, te.compute((n,), lambda i: a[i] + 1, name="b")]


def threes(rng: np.random.Generator) -> list[Any]:
    return [np.full(4, 3)]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
def test_narrow_integers_are_drawn_from_all_that_there_are(dtype: str) -> None:
    from tvm import te

    def wide() -> list[Any]:
        a = te.placeholder((4096,), dtype, name="a")
        return [a, te.compute((4096,), lambda i: a[i].astype("int32"), name="b")]

    (drawn,), limits = Workload(FunctionOperator(wide, {})).inputs(0), np.iinfo(dtype)
    assert str(drawn.dtype) == dtype
    span = limits.max - limits.min
    assert drawn.min() < limits.min + span / 64
    assert drawn.max() > limits.max - span / 64
    assert np.array_equal(drawn, random_input(np.random.default_rng(0), [4096], dtype))


def padded(size: int, dtype: str) -> list[Any]:
    """A sum over a padded window: 9 products for each of the outputs, in integers or not."""
    from tvm import te

    a, w = te.placeholder((size, size), dtype, name="a"), te.placeholder((3, 3), dtype, name="w")
    total = "int32" if dtype == "int8" else dtype
    inside = te.compute(
        (size + 2, size + 2),
        lambda y, x: te.if_then_else(
            te.all(y >= 1, y - 1 < size, x >= 1, x - 1 < size),
            a[y - 1, x - 1],
            te.const(0, dtype),
        ),
        name="inside",
    )
    r, s = te.reduce_axis((0, 3), "r"), te.reduce_axis((0, 3), "s")

    def value(y: Any, x: Any) -> Any:
        return te.sum(inside[y + r, x + s].astype(total) * w[r, s].astype(total), axis=[r, s])

    return [a, w, te.compute((size, size), value, name="out")]


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_padding_is_no_operation_and_integers_are(dtype: str) -> None:
    workload = Workload(FunctionOperator(padded, {"size": 6, "dtype": dtype}))
    assert workload.flops == 6 * 6 * 9 * 2


def test_an_index_is_no_operation_of_a_float() -> None:
    from tvm import te

    def picked(n: int = 10) -> list[Any]:
        a, w = te.placeholder((n,), name="a"), te.placeholder((n,), "int32", name="w")
        b = te.compute((n,), lambda i: a[(i + 3) % n] * (w[i] + 1).astype("float32"), name="b")
        return [a, w, b]

    assert Workload(FunctionOperator(picked, {})).flops == 10
