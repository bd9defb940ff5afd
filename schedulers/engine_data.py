"""The host's side of an engine: operands written as it reads them, results put back in place.

inputs  -> (stages that move data)  -> A, B as arrays -> memory images of A and B
image of C -> the contraction's output -> (stages that move data) -> the program's output
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flextensor.schedulers.analysis import points
from flextensor.schedulers.engine_layout import Layout, Roles
from flextensor.schedulers.expression import Linear
from flextensor.schedulers.program import Iterator, Program, Stage, Tensors
from flextensor.targets.engine import BYTES, SUM_BYTES, Engine
from flextensor.targets.rounding import ceil_div

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def operand(program: Program, buffer: Any, inputs: Sequence[Array]) -> Array:
    """The values of a buffer that is an input, or is moved from inputs by stages before."""
    for parameter, value in zip(program.inputs, inputs, strict=True):
        if parameter.same_as(buffer):
            return value
    from tvm import te

    tensors = Tensors(program)
    moved = te.compute(buffer.shape, lambda *i: tensors.load(buffer, list(i)), name="moved")
    return _run([*tensors.placeholders, moved], inputs)


def result(program: Program, stage: Stage, value: Array) -> Array:
    """The program's output, from that of its contraction, through the stages that move it."""
    if stage.buffer.same_as(program.output):
        return value
    import numpy as np
    from tvm import te

    tensors = Tensors(program)
    source = te.placeholder(stage.shape, dtype=stage.buffer.dtype, name="source")
    tensors.set(stage.buffer, source)
    shape = program.output.shape
    moved = te.compute(shape, lambda *i: tensors.load(program.output, list(i)), name="moved")
    parts = [_run([source, moved], [value >> bits & 0xFFFF]) for bits in (0, 16, 32, 48)]
    unsigned = sum(p.astype(np.uint64) << np.uint64(16 * i) for i, p in enumerate(parts))
    return np.asarray(unsigned, np.uint64).view(np.int64)


def _run(tensors: list[Any], inputs: Sequence[Array]) -> Array:
    """Run computes that move data, on the host; float32 holds integers below 2**24 exactly."""
    import numpy as np
    import tvm
    from tvm import te

    out = np.zeros([int(n) for n in tensors[-1].shape], "float32")
    kernel = tvm.compile(te.create_prim_func(tensors), target="llvm")["main"]
    arrays = [tvm.runtime.tensor(np.ascontiguousarray(x, "float32")) for x in inputs]
    moved = tvm.runtime.tensor(out)
    kernel(*arrays, moved)
    return np.asarray(moved.numpy())


class Packing:
    """Operands as words and back; as bytes, each word filled up to whole beats, for the RTL."""

    def __init__(self, roles: Roles, layout: Layout, engine: Engine) -> None:
        self.roles, self.layout, self.engine = roles, layout, engine

    def images(self, a: Array, b: Array) -> tuple[bytes, bytes]:
        """The memory images that the RTL reads."""
        e = self.engine
        return (
            _beats(self.a(a), e.dtype, e.a_beats * e.a_port),
            _beats(self.b(b), e.dtype, e.b_beats * e.b_port),
        )

    def sums(self, image: bytes) -> Array:
        """The accumulators in a memory image that the RTL wrote, as int64."""
        import numpy as np

        e = self.engine
        raw = np.frombuffer(image, np.uint8).reshape(-1, e.c_beats * e.c_port)[:, : e.c_word]
        return _signed(raw.reshape(-1, SUM_BYTES[e.dtype]))

    def a(self, value: Array) -> Array:
        """A as words of `lanes` elements."""
        import numpy as np

        layout = self.layout
        shape = [axis.extent for axis in layout.axes]
        inside = points(layout.inside)
        whole = np.broadcast_to(value[self._gather()], (*shape, inside))
        padded = np.zeros((*shape, layout.words * layout.lanes), whole.dtype)
        padded[..., :inside] = whole
        words = padded.reshape(layout.pixels, layout.words, layout.lanes)
        if layout.blocked:
            words = words.transpose(1, 0, 2)
        return words.reshape(-1, layout.lanes)

    def _gather(self) -> tuple[Array, ...]:
        """Where [axes of A..., lane] lies in the operand: an index array for each dimension."""
        import numpy as np

        layout, access = self.layout, self.roles.found.a.access or ()
        last = len(layout.axes)
        steps = {var: (last, values) for var, values in _digits(layout.inside).items()}
        indices: dict[int, Array] = {}
        for place, axis in enumerate(layout.axes):
            values = np.arange(axis.extent)
            if axis.dimension is None:
                (var,) = axis.index.terms
                steps[var] = (place, values)
            else:
                start = access[axis.dimension].constant
                indices[axis.dimension] = _along(values + start, place, last + 1)
        for dimension, form in enumerate(access):
            if dimension not in indices:
                indices[dimension] = _sum(form, steps, last + 1)
        return tuple(indices[dimension] for dimension in range(len(access)))

    def b(self, value: Array) -> Array:
        """B as words of pe_k * pe_n elements, those of every tile in the order of use."""
        import numpy as np

        e = self.engine
        flat = self.matrix(value)  # [group, column, word, lane]
        groups, _, words, lanes = flat.shape
        columns = e.n_tiles * e.tile_n
        full = np.zeros((groups, columns, words, lanes), flat.dtype)
        full[:, : flat.shape[1]] = flat
        parts = []
        for group in full:
            for n in range(e.n_tiles):
                steps = e.n_edge if n == e.n_tiles - 1 else e.n_steps
                first = n * e.tile_n
                tile = group[first : first + steps * e.pe_n]
                for k in range(e.k_tiles):
                    cut = tile[:, k * e.k_words : (k + 1) * e.k_words]
                    # [step, lane of n, word, lane of k] -> [step, word, lane of k, lane of n]
                    cut = cut.reshape(steps, e.pe_n, -1, lanes).transpose(0, 2, 3, 1)
                    parts.append(cut.reshape(-1, lanes * e.pe_n))
        return np.concatenate(parts)

    def matrix(self, value: Array) -> Array:
        """B as [group, column, word of the reduction, lane], zero in the lanes that pad."""
        import numpy as np

        roles, layout = self.roles, self.layout
        inside = () if roles.depthwise else layout.inside
        nests = (roles.groups, roles.columns, roles.outside(layout), inside)
        digits: dict[Any, tuple[int, Array]] = {}
        for place, nest in enumerate(nests):
            digits |= {var: (place, steps) for var, steps in _digits(nest).items()}
        counts = [points(nest) for nest in nests]
        indices = tuple(_sum(form, digits, 4) for form in roles.found.b.access or ())
        whole = np.broadcast_to(value[indices], counts)
        if roles.depthwise:
            return whole
        words, lanes = layout.words, layout.lanes
        padded = np.zeros((*counts[:3], words * lanes), whole.dtype)
        padded[..., : counts[3]] = whole
        return padded.reshape(counts[0], counts[1], counts[2] * words, lanes)

    def c(self, sums: Array) -> Array:
        """The contraction's output, from accumulators in the order in which they are done."""
        import numpy as np

        e = self.engine
        sums = sums.reshape(-1, e.pe_m, e.pe_n)
        groups, outer, inner, _ = e.loops
        padded_m, padded_n = e.m_tiles * e.tile_m, e.n_tiles * e.tile_n
        out = np.zeros((groups, padded_m, padded_n), sums.dtype)
        start = 0
        for group in range(groups):
            for place in range(outer * inner):
                first, second = divmod(place, inner)
                m, n = (second, first) if e.stationary == "weight" else (first, second)
                rows = ceil_div(e.m_edge, e.pe_m) if m == e.m_tiles - 1 else e.m_steps
                columns = e.n_edge if n == e.n_tiles - 1 else e.n_steps
                end = start + rows * columns
                tile = sums[start:end].reshape(rows, columns, e.pe_m, e.pe_n)
                height, width = rows * e.pe_m, columns * e.pe_n
                top, left, start = m * e.tile_m, n * e.tile_n, end
                target = out[group, top : top + height, left : left + width]
                target[:] = tile.transpose(0, 2, 1, 3).reshape(height, width)
        return self._placed(out[:, : e.rows.count, : e.columns])

    def _placed(self, value: Array) -> Array:
        """[group, row, column] in the order of the output's dimensions."""
        roles = self.roles
        order = [*roles.groups, *roles.found.m, *roles.columns]
        value = value.reshape([i.extent for i in order])
        places = {i.var: place for place, i in enumerate(order)}
        outputs = roles.found.outputs
        value = value.transpose([places[i.var] for parts in outputs for i in parts])
        return value.reshape([points(parts) for parts in outputs])


def _digits(nest: Sequence[Iterator]) -> dict[Any, Array]:
    """The values of each iterator as all of them run, the last one innermost."""
    import numpy as np

    found: dict[Any, Array] = {}
    count = inner = points(nest)
    for iterator in nest:
        inner //= iterator.extent
        found[iterator.var] = np.arange(count) // inner % iterator.extent
    return found


def _sum(form: Linear, steps: Mapping[Any, tuple[int, Array]], dimensions: int) -> Array:
    """The values of a form whose variables run along (dimension, values)."""
    import numpy as np

    total = _along(np.full(1, form.constant), 0, dimensions)
    for var, factor in form.terms.items():
        place, values = steps[var]
        total = total + factor * _along(values, place, dimensions)
    return total


def _along(steps: Array, place: int, dimensions: int) -> Array:
    """A vector along one of several dimensions."""
    shape = [1] * dimensions
    shape[place] = len(steps)
    return steps.reshape(shape)


def _beats(words: Array, dtype: str, width: int) -> bytes:
    """Rows of elements as bytes, each row filled up to `width` bytes."""
    import numpy as np

    data = np.ascontiguousarray(words.astype(dtype)).view(np.uint8).reshape(len(words), -1)
    assert data.shape[1] == words.shape[1] * BYTES[dtype] <= width
    out = np.zeros((len(words), width), np.uint8)
    out[:, : data.shape[1]] = data
    return out.tobytes()


def _signed(raw: Array) -> Array:
    """Little-endian integers of any number of bytes, two's complement."""
    import numpy as np

    wide = np.zeros((len(raw), 8), np.uint8)
    wide[:, : raw.shape[1]] = raw
    shift = 64 - 8 * raw.shape[1]
    return np.asarray(wide.view(np.int64).reshape(-1) << shift >> shift)


def same(got: Array, want: Array, dtype: str) -> bool:
    """Whether sums of integers are right; they wrap at the width of the accumulators."""
    import numpy as np

    modulus = 1 << 8 * SUM_BYTES[dtype]
    return bool(np.array_equal(got.astype(np.int64) % modulus, want.astype(np.int64) % modulus))
