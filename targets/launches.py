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
LANE_PASSES = {**MATRIX_PASSES, "tirx.disable_cse_tir": True}
"""The same where lanes of a warp hold tiles together: no name may stand for an index of a lane."""


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
    scopes = set().union(*map(_scopes, programs.values()))
    passes = MATRIX_PASSES if "shared.dyn" in scopes else {}
    passes = LANE_PASSES if "warp" in scopes else passes
    with tvm.transform.PassContext(config=passes), _uncompiled():
        bound = tirx.transform.BindTarget(target)(module)
        pipeline, _, finalize = tirx.get_default_tir_pipeline(target)
        # the host side is left as it is: once finalized, its launches are calls like any other
        host, devices = split_host_device_mods(pipeline(bound))
        if "warp" in scopes:
            devices = {t: _by_lanes(m) for t, m in devices.items()}
        finalized = {t: finalize()(m) for t, m in devices.items()}
        sources = [codegen_build(m, t).inspect_source() for t, m in finalized.items()]
    kernels = {v.name_hint: f for m in finalized.values() for v, f in m.functions.items()}
    functions = {
        v.name_hint: _function_of(programs[v.name_hint], f) for v, f in host.functions.items()
    }
    return Program("\n".join(sources), functions), kernels


def _by_lanes(module: Any) -> Any:
    """Registers for what a warp holds together, in which no lane asks for another's.

        launch threadIdx.x:                                       launch threadIdx.x:
            B = alloc_buffer((256,), scope="warp")          ->        B = alloc_buffer((8,))
            ... B[number * 32 + threadIdx.x] ...                      ... B[number] ...

    TVM's pass has to find the lanes behind the buffer, which therefore goes out of the launch, and
    changes one buffer at a time.
    """
    import tvm_ffi
    from tvm import tirx

    most = 0

    def outside(function: Any, module: Any, context: Any) -> Any:
        nonlocal most
        held: dict[Any, Any] = {}

        def take(node: Any) -> Any:
            if str(node.buffer.scope()) != "warp":
                return node
            held.setdefault(node.buffer, node)
            return tirx.Evaluate(0)

        body = tvm_ffi.structural_map(function.body, (tirx.AllocBuffer, take))
        most = max(most, len(held))
        return function.with_body(tirx.SeqStmt([*held.values(), body])) if held else function

    module = tirx.transform.prim_func_pass(outside, opt_level=0)(module)
    for _ in range(most):
        module = tirx.transform.LowerWarpMemory()(module)
    return module


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


def _scopes(func: Any) -> set[str]:
    """Scopes of the buffers that a function allocates."""
    import tvm_ffi
    from tvm import s_tir

    scopes: set[str] = set()
    tvm_ffi.structural_walk(
        func.body,
        (s_tir.SBlock, lambda block: scopes.update(str(b.scope()) for b in block.alloc_buffers)),
    )
    return scopes


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
