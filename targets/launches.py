"""A scheduled program as device source and what its host would do: allocate, and launch kernels.

    main(A, B, C):                        buffers: A, B, C, and P, a workspace
        P = alloc(57600)            ->    main_kernel    on (A, P), grid (900,), block (64,)
        main_kernel<<<900, 64>>>(A, P)    main_kernel_1  on (P, B, C), ...
        ...

TVM orders the arguments of a kernel as it likes; only the lowered host function knows. Serves
every target whose kernels are launched by somebody else than TVM's runtime.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

AXES = ("x", "y", "z")
DYNAMIC_SHARED = "tirx.use_dyn_shared_memory"
MATRIX_PASSES = {"tirx.disable_storage_rewrite": True, "tirx.use_async_copy": True}
"""How TVM lowers what keeps panels in shared memory of dynamic size. Two of its passes let buffers
take each other's place there; the first of them cannot where one is of half, the other of float."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel: its name, its arguments by position in `Function.sizes`, its extents, and the
    bytes of shared memory that its blocks get beside those which its source declares."""

    kernel: str
    arguments: tuple[int, ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int = 0


@dataclasses.dataclass(frozen=True)
class Function:
    """One host function. `sizes` are the bytes of its parameters, then of its workspaces."""

    parameters: int
    sizes: tuple[int, ...]
    written: tuple[int, ...]
    """Positions of the parameters that kernels write."""
    launches: tuple[Launch, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """Device source and the functions that launch its kernels, by name."""

    source: str
    functions: Mapping[str, Function]

    def dumps(self) -> str:
        """The program as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def loads(cls, text: str) -> Program:
        """What `dumps` wrote; `ValueError` or `KeyError` for anything else."""
        values = json.loads(text)
        return cls(values["source"], {k: _function(v) for k, v in values["functions"].items()})


def _function(values: Mapping[str, Any]) -> Function:
    launches = [
        Launch(
            v["kernel"],
            tuple(v["arguments"]),
            _three(v["grid"]),
            _three(v["block"]),
            int(v.get("shared", 0)),
        )  # fmt: skip
        for v in values["launches"]
    ]
    return Function(
        values["parameters"], tuple(values["sizes"]), tuple(values["written"]), tuple(launches)
    )


def _three(extents: Any) -> tuple[int, int, int]:
    x, y, z = extents
    return int(x), int(y), int(z)


def lower(module: Any, target: Any) -> Program:
    """Generate the source of a scheduled `tvm.IRModule` for a `tvm.target.Target` with a host.

    Raises what TVM raises, and `ValueError` for a launch that no grid and block describe.
    """
    return lowered(module, target)[0]


def lowered(module: Any, target: Any) -> tuple[Program, dict[str, Any]]:
    """The same, and every kernel as the lowered `tvm.tirx.PrimFunc` that its source is of."""
    import tvm
    from tvm import tirx
    from tvm.tirx.build import codegen_build, split_host_device_mods

    programs = {v.name_hint: f for v, f in module.functions.items()}
    passes = MATRIX_PASSES if any(map(_sized_at_launch, programs.values())) else {}
    with tvm.transform.PassContext(config=passes), _uncompiled():
        bound = tirx.transform.BindTarget(target)(module)
        pipeline, _, finalize = tirx.get_default_tir_pipeline(target)
        # the host side is left as it is: once finalized, its launches are calls like any other
        host, devices = split_host_device_mods(pipeline(bound))
        finalized = {t: finalize()(m) for t, m in devices.items()}
        sources = [codegen_build(m, t).inspect_source() for t, m in finalized.items()]
    kernels = {v.name_hint: f for m in finalized.values() for v, f in m.functions.items()}
    functions = {
        v.name_hint: _function_of(programs[v.name_hint], f) for v, f in host.functions.items()
    }
    return Program("\n".join(sources), functions), kernels


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Keep TVM from compiling the CUDA C that it generates, which takes it a second and which it
    does wherever it finds a card: the source is all that is wanted of it."""
    import tvm_ffi

    name = "tvm_callback_cuda_compile"
    own = tvm_ffi.get_global_func(name)
    tvm_ffi.register_global_func(name, lambda code: code.encode(), override=True)
    try:
        yield
    finally:
        tvm_ffi.register_global_func(name, own, override=True)


def _sized_at_launch(func: Any) -> bool:
    """Whether a function has shared memory of dynamic size."""
    import tvm_ffi
    from tvm import s_tir

    scopes: set[str] = set()
    tvm_ffi.structural_walk(
        func.body,
        (s_tir.SBlock, lambda block: scopes.update(str(b.scope()) for b in block.alloc_buffers)),
    )
    return "shared.dyn" in scopes


def _written(func: Any) -> tuple[int, ...]:
    """Positions of the parameters that a function stores to."""
    import tvm_ffi
    from tvm import tirx

    stored: set[Any] = set()
    tvm_ffi.structural_walk(func.body, (tirx.BufferStore, lambda store: stored.add(store.buffer)))
    return tuple(p for p, parameter in enumerate(func.params) if parameter in stored)


def _function_of(program: Any, lowered: Any) -> Function:
    """The launches of a host function; its parameters' names and shapes are the program's."""
    import tvm_ffi
    from tvm import ir, tirx

    declared: dict[str, Any] = {}
    buffers: dict[str, int] = {str(p.name): _bytes(p) for p in program.params}
    calls: list[Any] = []

    def declare(node: Any) -> None:
        declared[str(node.buffer.name)] = node.data

    def allocate(node: Any) -> None:
        buffers[str(node.buffer.name)] = _bytes(node.buffer)

    def call(node: Any) -> None:
        if isinstance(node.op, ir.Op) and node.op.name == "tirx.call_ffi_kernel":
            calls.append(node)

    tvm_ffi.structural_walk(
        lowered.body, [(tirx.DeclBuffer, declare), (tirx.AllocBuffer, allocate), (ir.Call, call)]
    )
    positions = {name: position for position, name in enumerate(buffers)}

    def position(pointer: Any) -> int:
        while isinstance(pointer, ir.Call) or str(pointer.name) not in positions:
            pointer = pointer.args[0] if isinstance(pointer, ir.Call) else declared[pointer.name]
        return positions[str(pointer.name)]

    launches = tuple(_launch(node, position) for node in calls)
    if not launches:
        raise ValueError("the program launches no kernel: no loop is bound to a block")
    return Function(len(program.params), tuple(buffers.values()), _written(program), launches)


def _bytes(buffer: Any) -> int:
    return math.prod(map(int, buffer.shape)) * item_bytes(buffer)


def item_bytes(buffer: Any) -> int:
    """Of an element of a buffer, which may be a vector."""
    import tvm_ffi

    return int(tvm_ffi.dtype(str(buffer.dtype)).itemsize)


def _launch(node: Any, position: Any) -> Launch:
    """call_ffi_kernel("main_kernel", A.data, C.data, 8, 64), tags blockIdx.x, threadIdx.x."""
    tags = [str(tag) for tag in node.attrs.launch_params]
    name, *rest = node.args
    pointers, values = rest[: len(rest) - len(tags)], rest[len(rest) - len(tags) :]
    extents, shared = {"blockIdx": [1, 1, 1], "threadIdx": [1, 1, 1]}, 0
    for tag, value in zip(tags, values, strict=True):
        if tag == DYNAMIC_SHARED:
            shared = int(value)
            continue
        scope, _, axis = tag.partition(".")
        if scope not in extents or axis not in AXES:
            raise ValueError(f"cannot launch with {tag}")
        extents[scope][AXES.index(axis)] = int(value)
    return Launch(
        str(name.value),
        tuple(map(position, pointers)),
        _three(extents["blockIdx"]),
        _three(extents["threadIdx"]),
        shared,
    )
