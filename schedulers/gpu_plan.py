"""The sizes of a contraction on a device with thread blocks, as they follow from a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tvm import tirx

from flextensor.schedulers.space import Value
from flextensor.targets.rounding import ceil_div

PANELS = {"none": 1, "register": 1, "async2": 2, "async3": 3, "async4": 4}
"""Panels of a side in shared memory at a time, by the value of the knob `prefetch`: several, where
copies go on beside the kernel."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """One side of the output as blocks of virtual threads x threads x elements of a thread."""

    extent: int
    virtual: int
    threads: int
    inner: int

    @property
    def own(self) -> int:
        """Elements of a thread."""
        return self.virtual * self.inner

    @property
    def block(self) -> int:
        """Elements of a block."""
        return self.virtual * self.threads * self.inner

    @property
    def blocks(self) -> int:
        """Blocks that cover the side."""
        return ceil_div(self.extent, self.block)

    @property
    def padded(self) -> int:
        """Elements of all blocks."""
        return self.blocks * self.block

    @property
    def factors(self) -> list[int]:
        """What the padded side is split by."""
        return [self.blocks, self.virtual, self.threads, self.inner]

    @property
    def span(self) -> int:
        """Elements that lie together: those of all threads, once."""
        return self.threads * self.inner

    @property
    def spans(self) -> int:
        """Spans of all blocks."""
        return self.blocks * self.virtual

    def locate(self, q: Any) -> tuple[Any, Any]:
        """Span of an element, and its place there. Where there is one span, TVM finds what a
        thread needs only without a quotient."""
        if self.spans == 1:
            return 0, q
        return tirx.floordiv(q, self.span), tirx.floormod(q, self.span)

    def panel(self, span: Any, i: Any) -> tuple[Any, Any]:
        """Block, and place in its panel, of an element of a span."""
        if self.virtual == 1:
            return span, i
        return tirx.floordiv(span, self.virtual), tirx.floormod(span, self.virtual) * self.span + i


@dataclasses.dataclass(frozen=True)
class Plan:
    """Every size that follows from a config."""

    y: Tile
    x: Tile
    k_extent: int
    k_tile: int
    k_unroll: int
    staged: tuple[str, ...]
    """Sides, ``y`` and ``x``, that go through shared memory."""
    pad: int
    """Elements between the rows of a panel, which so begin in different banks."""
    k_split: int
    """Parts of the reduction that blocks of their own compute."""
    k_turn: int
    """Iterators of the reduction that are turned from its front to its end."""
    prefetch: bool
    """Whether the next panels are on their way to registers while the present ones are used."""
    panels: int
    """Panels of a side in shared memory at a time: all but one are on their way there."""
    lanes: int
    """Elements of X that a thread computes as one vector."""

    @property
    def ahead(self) -> int:
        """Panels of a side that are on their way while one is used."""
        return 1 if self.prefetch else self.panels - 1

    @property
    def bodies(self) -> int:
        """How often the unrolled body is written: in the loop, and for all panels that are ahead
        when that ends."""
        return 1 + self.ahead

    @property
    def k_blocks(self) -> int:
        """Panels along one part of the reduction."""
        return ceil_div(ceil_div(self.k_extent, self.k_tile), self.k_split)

    @property
    def k_padded(self) -> bool:
        """Whether panels reach beyond the reduction."""
        return self.k_split * self.k_blocks * self.k_tile != self.k_extent

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.y.threads * self.x.threads

    @property
    def accumulators(self) -> int:
        """Sums that a thread holds."""
        return self.y.own * self.x.own

    @property
    def held(self) -> int:
        """Registers of a thread that hold values at a time, one or a vector of `lanes` each:
        accumulators, operands for each of them, and what is on its way to the next panels."""
        fetched = self.shares if self.prefetch else 0
        return (self.accumulators + self.x.own) // self.lanes + self.y.own + fetched

    @property
    def registers(self) -> int:
        """The same, and a few for addresses."""
        return self.held + 16

    @property
    def rows(self) -> list[int]:
        """Elements of a row of each panel."""
        return [{"y": self.y, "x": self.x}[side].block for side in self.staged]

    @property
    def copied(self) -> int:
        """Elements that a block copies for every step of `k_tile`."""
        return self.k_tile * sum(self.rows)

    @property
    def shares(self) -> int:
        """Elements of them that a thread copies, of each panel its own."""
        return sum(ceil_div(self.k_tile * row, self.threads) for row in self.rows)

    @property
    def shared(self) -> int:
        """Elements of all panels in shared memory."""
        return self.panels * self.k_tile * sum(row + self.pad for row in self.rows)

    @property
    def body(self) -> int:
        """Multiply-adds of the unrolled body, of whole vectors."""
        return self.accumulators // self.lanes * self.k_unroll

    @classmethod
    def of(cls, config: Mapping[str, Value], extents: Mapping[str, int]) -> Plan:
        """The plan of a config; `extents` are those of ``y``, ``x`` and ``k``."""
        tiles = {
            side: Tile(
                extents[side],
                *(int(config[f"{side}_{what}"]) for what in ("virtual", "threads", "inner")),
            )
            for side in ("y", "x")
        }
        stage = config["staged"]
        return cls(
            **tiles,
            k_extent=extents["k"],
            k_tile=int(config["k_tile"]),
            k_unroll=int(config["k_unroll"]),
            staged=("y", "x") if stage == "both" else () if stage == "none" else (str(stage),),
            pad=int(config["pad"]),
            k_split=int(config["k_split"]),
            k_turn=int(config["k_turn"]),
            prefetch=config["prefetch"] == "register",
            panels=PANELS[str(config["prefetch"])],
            lanes=int(config.get("x_lanes", 1)),
        )
