"""Contractions on an FPGA: the space of engines, all of which the part can hold.

    for tile of m, tile of n, tile of k:              the order is a knob
        read a tile of A, a tile of B                 from two memory ports, ahead if double
        for step of m, step of n, word of k:          one a cycle
            C[pe_m, pe_n] += A[pe_m, pe_k] * B[pe_k, pe_n]     all at once: the array
        write the tile of C                           to a third port, behind if double

Tiles need not divide; the last ones are smaller. An engine has one contraction: stages before it
may move data (the host does, when it writes the operands), and so may stages after it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from flextensor.errors import UnsupportedError
from flextensor.schedulers.analysis import Contraction, contraction, points
from flextensor.schedulers.base import Scheduler, StageSchedule
from flextensor.schedulers.engine_layout import Layout, Roles
from flextensor.schedulers.program import Program, Stage, Tensors
from flextensor.schedulers.space import Config, Space, Value, choice, sizes
from flextensor.targets.base import Target
from flextensor.targets.engine import BYTES, Engine
from flextensor.targets.engine_resources import Resources, resources
from flextensor.targets.fpga import ENGINE, FPGA, WIDEST_PORT
from flextensor.targets.rounding import ceil_div

STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64)
TILES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
POWERS = (1, 2, 4, 8, 16, 32, 64)
SEEDS = (
    # pe_m, pe_n, pe_k, m_steps, n_steps
    (16, 16, 16, 32, 8), (8, 32, 16, 32, 4), (16, 32, 8, 16, 4), (32, 32, 4, 8, 4),
    (14, 16, 16, 14, 8), (8, 8, 64, 32, 8), (16, 5, 64, 16, 8),
    (16, 8, 32, 16, 8), (8, 8, 32, 32, 8), (8, 8, 16, 16, 8), (8, 8, 8, 16, 4), (4, 4, 8, 16, 8),
    (8, 8, 1, 32, 1), (16, 32, 1, 16, 1), (4, 16, 1, 64, 1), (4, 4, 4, 8, 4), (2, 4, 4, 8, 8),
    (4, 4, 1, 8, 1), (2, 2, 2, 8, 4), (1, 1, 1, 4, 4), (1, 16, 16, 1, 4), (1, 1, 1, 1, 1),
)  # fmt: skip


class EngineScheduler(Scheduler):
    """Takes the one contraction of a program, on a target that is made of multipliers."""

    def take(self, program: Program, stage: Stage, target: Target) -> StageSchedule | None:
        """The stage; `UnsupportedError` where the program is none that an engine computes."""
        if not target.multipliers:
            return None
        assert isinstance(target, FPGA)
        if program.constants:
            raise UnsupportedError("an FPGA's weights are always packed ahead; drop --prepacked")
        roles = _roles(stage)
        others = [s for s in program.stages if s is not stage and _roles(s)]
        if roles is not None and not others:
            return EngineSchedule(program, roles, target)
        if roles is None and others and _moves(stage):
            return HostSchedule(stage)
        dtype = program.output.dtype
        if dtype != "float32":
            raise UnsupportedError(
                f"no FPGA engine computes {stage.name} with {dtype} outputs: leave the operator in "
                f"float32 and name the type with the part, as fpga:{target.part},dtype=int16"
            )
        why = "one of several sums of products" if roles else "no sum of two products, nor a move"
        raise UnsupportedError(f"no FPGA engine computes {stage.name}: it is {why}")


def _roles(stage: Stage) -> Roles | None:
    found = contraction(stage)
    return Roles.of(found) if found is not None and found.k else None


def _moves(stage: Stage) -> bool:
    """Whether a stage only puts what it reads in another place."""
    from tvm.ir.expr import TensorLoad

    return stage.combiner is None and isinstance(stage.value, TensorLoad)


class HostSchedule(StageSchedule):
    """A stage that the host carries out when it reads the results."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.space = stage, Space(())

    def write(self, config: Mapping[str, Value], tensors: Tensors, final: Stage) -> None:
        tensors.plain(self.stage)

    def arrange(self, config: Mapping[str, Value], sch: Any) -> None:
        """As it stands."""


class EngineSchedule(StageSchedule):
    """One contraction of a program as an engine."""

    def __init__(self, program: Program, roles: Roles, target: FPGA) -> None:
        self.program, self.roles, self.target = program, roles, target
        self.found: Contraction = roles.found
        self.stage = self.found.stage
        self._layouts: dict[tuple[int, bool], Layout] = {}
        self._last: tuple[dict[str, Value], Engine] | None = None
        self.space = self._space()

    def layout(self, config: Mapping[str, Value]) -> Layout:
        """How the operands lie in memory."""
        lanes = int(config["pe_n" if self.roles.depthwise else "pe_k"])
        key = lanes, config["unfold"] == "row"
        if key not in self._layouts:
            self._layouts[key] = self.roles.layout(*key)
        return self._layouts[key]

    def engine(self, config: Mapping[str, Value]) -> Engine:
        """The design of a config."""
        if self._last is not None and self._last[0] == config:
            return self._last[1]
        roles, layout = self.roles, self.layout(config)
        taps = layout.digits(roles.outside(layout), words=not roles.depthwise)
        sizes = {
            name: int(config[name])
            for name in (
                "pe_m", "pe_n", "pe_k", "m_steps", "n_steps", "a_port", "b_port", "c_port",
                "a_buffers", "b_buffers", "c_buffers",
            )
        }  # fmt: skip
        engine = Engine(
            kind="depthwise" if roles.depthwise else "gemm",
            dtype=self.target.dtype,
            groups=layout.digits(roles.groups),
            rows=layout.digits(self.found.m),
            taps=taps,
            block=layout.pixels if layout.blocked else 0,
            columns=points(roles.columns),
            depth=points(self.found.k),
            k_words=ceil_div(taps.count, int(config["k_tiles"])),
            stationary=str(config["stationary"]),
            **sizes,
        )
        self._last = dict(config), engine
        return engine

    def write(self, config: Mapping[str, Value], tensors: Tensors, final: Stage) -> None:
        tensors.plain(self.stage)

    def arrange(self, config: Mapping[str, Value], sch: Any) -> None:
        """The loops stay as they are: what is built stands in `notes`."""

    def notes(self, config: Mapping[str, Value]) -> Mapping[str, str]:
        """The engine of a config as JSON."""
        return {ENGINE: json.dumps(dataclasses.asdict(self.engine(config)))}

    def _space(self) -> Space:
        rows, columns = points(self.found.m), points(self.roles.columns)
        depth = points(self.found.k)
        width = BYTES[self.target.dtype]
        ports = [p for p in POWERS if p <= min(WIDEST_PORT, self.target.port_bytes)]
        depthwise = self.roles.depthwise
        lanes = [p for p in POWERS if p < 2 * depth] if not depthwise else [1]
        across = [p for p in (POWERS if depthwise else STEPS) if p < 2 * columns]
        orders = ("output", "weight") if depthwise else ("output", "weight", "input")
        knobs = (
            sizes("pe_m", [p for p in STEPS if p < 2 * rows]),
            sizes("pe_n", across),
            sizes("pe_k", lanes),
            sizes("m_steps", [t for t in TILES if t < 2 * rows]),
            sizes("n_steps", [1] if depthwise else [t for t in TILES if t < 2 * columns]),
            sizes("k_tiles", [t for t in TILES if t <= depth]),
            sizes("a_port", [p for p in ports if p >= width]),
            sizes("b_port", [p for p in ports if p >= width]),
            sizes("c_port", ports),
            choice("a_buffers", (2, 1)),
            choice("b_buffers", (2, 1)),
            choice("c_buffers", (2, 1)),
            choice("stationary", orders),
            choice("unfold", ("none", "row") if self.roles.unfolds else ("none",)),
        )
        constraints = (self._too_wide, self._too_large, self._cut, self._unbuildable)
        space = Space(knobs, constraints, features=self._features)
        return dataclasses.replace(space, seeds=tuple(self._seeds(space)))

    def _too_wide(self, config: Mapping[str, Value]) -> str | None:
        """Ports are no wider than a word, and together no wider than the memory."""
        engine = self.engine(config)
        for name in "abc":
            port, word = getattr(engine, f"{name}_port"), getattr(engine, f"{name}_word")
            if port > word:
                return f"{name}_port moves {port} bytes a cycle, a word has {word}"
        total = engine.a_port + engine.b_port + engine.c_port
        if total > self.target.port_bytes:
            has = self.target.port_bytes
            return f"ports move {total} bytes a cycle, the memory {has}"
        return None

    def _too_large(self, config: Mapping[str, Value]) -> str | None:
        """No tile has steps that nothing is left for."""
        engine = self.engine(config)
        for name, tile, pe, extent in (
            ("m", engine.tile_m, engine.pe_m, engine.rows.count),
            ("n", engine.tile_n, engine.pe_n, engine.columns),
        ):
            if tile - pe >= extent:
                return f"{name}_steps make tiles of {tile}, there are {extent}"
        if engine.k_tiles != config["k_tiles"]:
            return f"{config['k_tiles']} tiles of the reduction are {engine.k_tiles} in whole words"
        return None

    def _cut(self, config: Mapping[str, Value]) -> str | None:
        """Only the output-stationary order may cut the reduction: sums never leave the chip."""
        if config["stationary"] != "output" and int(config["k_tiles"]) > 1:
            return f"{config['stationary']}-stationary engines have the reduction in one tile"
        return None

    def _unbuildable(self, config: Mapping[str, Value]) -> str | None:
        """DSP blocks, block RAM and lookup tables of the part."""
        needs, has = self.resources(config), self.target
        for what, need, limit in (
            ("DSP blocks", needs.dsp, has.multipliers),
            ("block RAM", needs.bram18, has.bram18),
            ("LUT", needs.lut, has.luts),
        ):
            if need > limit:
                return f"needs {need} {what}, {has.part} has {limit} to use"
        return None

    def resources(self, config: Mapping[str, Value]) -> Resources:
        """What the engine of a config takes."""
        return resources(self.engine(config), self.target.lut_inputs)

    def _features(self, config: Mapping[str, Value]) -> dict[str, float]:
        """The paper's formula, max(read, compute, write), as the estimate, and its parts."""
        e = self.engine(config)
        groups, outer, inner, k = e.loops
        rows, words = e.rows.count * e.groups.count, e.taps.count
        again = 1 if e.stationary == "input" else e.n_tiles
        read_a = rows * words * e.a_beats * again
        again = 1 if e.stationary == "weight" else e.m_tiles
        read_b = e.groups.count * ceil_div(e.columns, e.pe_n) * words * e.b_beats * again
        row_steps = e.groups.count * ceil_div(e.rows.count, e.pe_m)
        steps = row_steps * ceil_div(e.columns, e.pe_n) * words
        write = row_steps * ceil_div(e.columns, e.pe_n) * e.c_beats
        parts = {"read_a": read_a, "read_b": read_b, "compute": steps, "write": write}
        seconds = {name: cycles / self.target.clock for name, cycles in parts.items()}
        return {**seconds, "estimate": max(seconds.values()), "tiles": groups * outer * inner * k}

    def _seeds(self, space: Space) -> list[Config]:
        """Arrays of several shapes that fit, with wide ports and double buffers."""
        found: dict[tuple[Value, ...], Config] = {}
        for pe_m, pe_n, pe_k, m_steps, n_steps in SEEDS:
            for stationary, unfold in (("output", "none"), ("weight", "none"), ("output", "row")):
                wanted: Config = {
                    "pe_m": pe_m, "pe_n": pe_n, "pe_k": pe_k, "m_steps": m_steps,
                    "n_steps": n_steps, "k_tiles": 1, "stationary": stationary, "unfold": unfold,
                    "a_buffers": 2, "b_buffers": 2, "c_buffers": 2,
                    "a_port": WIDEST_PORT, "b_port": WIDEST_PORT, "c_port": WIDEST_PORT,
                }  # fmt: skip
                config = self._fit(space, space.config(space.project(wanted)))
                if config is not None:
                    found.setdefault(tuple(config.values()), config)
        return list(found.values())

    def _fit(self, space: Space, config: Config) -> Config | None:
        """`config` with narrower ports and smaller tiles, the first that is legal."""
        knobs = {knob.name: knob for knob in space.knobs}
        narrower = (("a_port", "a_word"), ("b_port", "b_word"), ("c_port", "c_word"))
        for port, word in narrower:
            limit = min(getattr(self.engine(config), word), self.target.port_bytes // 3)
            fitting = [v for v in knobs[port].values if int(v) <= limit]
            if not fitting:
                return None
            config = {**config, port: fitting[-1]}
        for name in ("m_steps", "n_steps"):
            while self._too_large(config) and config[name] != 1:
                values = knobs[name].values
                config = {**config, name: values[values.index(config[name]) - 1]}
        cuts = knobs["k_tiles"].values if config["stationary"] == "output" else (1,)
        options = ({**config, "k_tiles": cut} for cut in cuts)
        return next((c for c in options if space.reason(c) is None), None)


def engine_part(func: Any, target: Target) -> EngineSchedule:
    """The engine's part of a program; its configs are those of the program, unprefixed by
    `flextensor.schedulers.space.share`."""
    from flextensor.schedulers.composition import Composition

    parts = [part for part, _ in Composition.of(func, target).parts]
    return next(part for part in parts if isinstance(part, EngineSchedule))
