"""Any contraction that an einsum string without repeated indices in one term describes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from flextensor.errors import InputError
from flextensor.operators.base import Operator, Tensors, check_size, convert, register

if TYPE_CHECKING:
    import torch

EXAMPLE = "write it as 'ij,jk->ik'"


@register
@dataclasses.dataclass(frozen=True)
class Einsum(Operator):
    """``out[output indices] = sum over the others of the product of all operands``.

    `equation` is as in NumPy, ``bij,bjk->bik``; without an arrow the output has the indices that
    occur once, sorted. `sizes` gives every index its extent, ``b=8,i=64,j=64,k=64``. Both are
    kept in one canonical spelling, so that equal contractions have equal keys.

    >>> Einsum("ij, jk", "k=4, i=2, j=3")
    Einsum(equation='ij,jk->ik', sizes='i=2,j=3,k=4')
    """

    name: ClassVar[str] = "einsum"

    equation: str = "bij,bjk->bik"
    sizes: str = "b=8,i=256,j=256,k=256"

    def __post_init__(self) -> None:
        super().__post_init__()
        terms, output = _split(self.equation)
        extents = _extents(self.sizes)
        letters = list(dict.fromkeys("".join(terms)))
        if missing := [i for i in letters if i not in extents]:
            raise InputError(f"einsum: no size for {', '.join(missing)}; add {missing[0]}=...")
        if extra := [i for i in extents if i not in letters]:
            raise InputError(f"einsum: size given for {', '.join(extra)}, not in {self.equation!r}")
        object.__setattr__(self, "equation", f"{','.join(terms)}->{output}")
        object.__setattr__(self, "sizes", ",".join(f"{i}={extents[i]}" for i in letters))

    @classmethod
    def of(cls, equation: str, **sizes: int) -> Self:
        """``Einsum.of("ij,jk->ik", i=2, j=3, k=4)``."""
        return cls(equation, ",".join(f"{i}={n}" for i, n in sizes.items()))

    @classmethod
    def parse(cls, values: Mapping[str, str]) -> Self:
        """As `Operator.parse`; a field of one letter is the size of that index."""
        sizes = {i: v for i, v in values.items() if len(i) == 1}
        fields = {f: v for f, v in values.items() if f not in sizes}
        if sizes:
            given = [fields["sizes"]] if fields.get("sizes") else []
            fields["sizes"] = ",".join(given + [f"{i}={n}" for i, n in sizes.items()])
        return super().parse(fields)

    @property
    def terms(self) -> tuple[str, ...]:
        """The indices of every operand."""
        return tuple(self.equation.split("->")[0].split(","))

    @property
    def output(self) -> str:
        """The indices of the output; empty for a scalar."""
        return self.equation.split("->")[1]

    @property
    def extents(self) -> dict[str, int]:
        """The extent of every index, in order of first appearance."""
        return _extents(self.sizes)

    def compute(self) -> Tensors:
        from tvm import te

        extents = self.extents
        operands = [
            te.placeholder([extents[i] for i in term], name=chr(ord("A") + n))
            for n, term in enumerate(self.terms)
        ]
        summed = {i: te.reduce_axis((0, extents[i]), i) for i in extents if i not in self.output}

        def value(*position: Any) -> Any:
            place = summed | dict(zip(self.output, position, strict=True))
            factors = [a(*(place[i] for i in t)) for a, t in zip(operands, self.terms, strict=True)]
            product = factors[0]
            for factor in factors[1:]:
                product = product * factor
            return te.sum(product, axis=list(summed.values())) if summed else product

        return [*operands, te.compute([extents[i] for i in self.output], value, name="einsum")]

    def flops(self) -> int:
        adds = int(set(self.extents) > set(self.output))
        return math.prod(self.extents.values()) * (len(self.terms) - 1 + adds)

    def torch(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.einsum(self.equation, *inputs)


def _split(equation: str) -> tuple[list[str], str]:
    """The operands' indices and the output's, or an `InputError`."""
    text = "".join(equation.split())
    left, arrow, output = text.partition("->")
    terms = left.split(",")
    letters = "".join(terms)
    if not arrow:
        output = "".join(sorted(i for i in letters if letters.count(i) == 1))
    for term in [*terms, output]:
        if not all(i.isascii() and i.isalpha() for i in term):
            raise InputError(
                f"einsum: cannot read {equation!r}: {term!r} is not letters; {EXAMPLE}"
            )
        if twice := [i for i in term if term.count(i) > 1]:
            where = "the output" if term is output else f"operand {term!r}"
            raise InputError(f"einsum: index {twice[0]} occurs twice in {where} of {equation!r}")
    if not all(terms):
        raise InputError(f"einsum: an operand of {equation!r} has no indices; {EXAMPLE}")
    if unknown := [i for i in output if i not in letters]:
        raise InputError(f"einsum: output index {unknown[0]} of {equation!r} is in no operand")
    return terms, output


def _extents(sizes: str) -> dict[str, int]:
    """``"i=2,j=3"`` as a mapping, or an `InputError`."""
    extents: dict[str, int] = {}
    for item in filter(None, sizes.replace(" ", "").split(",")):
        index, _, text = item.partition("=")
        if len(index) != 1 or not index.isalpha():
            raise InputError(f"einsum: cannot read the size {item!r}; write i=64,j=64")
        value = convert(f"einsum: {index}", text, "int")
        check_size(f"einsum: {index}", value)
        if extents.setdefault(index, value) != value:
            raise InputError(f"einsum: index {index} has two sizes, {extents[index]} and {value}")
    return extents
