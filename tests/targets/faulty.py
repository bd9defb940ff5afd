"""An operator with good and bad formulations, and its measurer on the stub worker."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from flextensor.operators import Operator

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Increment(Operator):
    """B[i] = A[i] + 1, right, wrong, endless or hungry."""

    name: ClassVar[str] = "increment"

    n: int = 64

    def compute(self) -> list[Any]:
        return self._simple(lambda a: a + 1.0)

    def formulations(self) -> Mapping[str, Callable[[], list[Any]]]:
        return {
            "direct": self.compute,
            "wrong": lambda: self._simple(lambda a: a + 1.5),
            "nan": self._nan,
            "slow": lambda: self._reduced(1 << 12, 1 << 4),
            "endless": lambda: self._reduced(1 << 20, 1 << 20),
            "hungry": self._hungry,
        }

    def flops(self) -> int:
        return self.n

    def torch(self, *inputs: Any) -> Any:
        return inputs[0] + 1

    def _simple(self, body: Callable[[Any], Any]) -> list[Any]:
        from tvm import te

        a = te.placeholder((self.n,), name="A")
        return [a, te.compute((self.n,), lambda i: body(a[i]), name="B")]

    def _nan(self) -> list[Any]:
        from tvm import te

        return self._simple(lambda a: te.sqrt(-1.0 - a * a))

    def _reduced(self, outer: int, inner: int) -> list[Any]:
        """A + 1, after outer * inner steps that nobody can leave out."""
        from tvm import te

        a = te.placeholder((self.n,), name="A")
        r0, r1 = te.reduce_axis((0, outer), "r0"), te.reduce_axis((0, inner), "r1")
        s = te.compute((self.n,), lambda i: te.sum(a[i] * 1e-30, axis=[r0, r1]), name="S")
        return [a, te.compute((self.n,), lambda i: a[i] + (1.0 + s[i]), name="B")]

    def _hungry(self) -> list[Any]:
        """A + 1, by way of 6 GiB."""
        from tvm import te

        rows = (6 << 30) // 4 // self.n
        a = te.placeholder((self.n,), name="A")
        w = te.compute((rows, self.n), lambda r, i: a[i] + r, name="W")
        r = te.reduce_axis((0, rows), "r")
        s = te.compute((self.n,), lambda i: te.min(w[r, i], axis=r), name="S")
        return [a, te.compute((self.n,), lambda i: s[i] + 1.0, name="B")]
