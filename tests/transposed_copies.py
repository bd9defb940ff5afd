"""Copies that have rows as columns: scheduled alone, run, and compared."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tvm
from tvm.s_tir import Schedule

from flextensor.schedulers import transposition
from flextensor.targets import lookup
from flextensor.targets.llvm import LLVM


def target(bits: int = 256) -> LLVM:
    found = lookup("llvm")
    assert isinstance(found, LLVM)
    return dataclasses.replace(found, vector_bits=bits)


def scheduled(func: Any, bits: int = 256) -> tuple[bool, Any]:
    """Whether the copy was marked, and the program."""
    sch = Schedule(func)
    marked = transposition.mark(sch, sch.get_sblock("panels"), target(bits), parallel=True)
    transposition.carry_out(sch)
    return marked, sch.mod


def check(module: Any, given: np.ndarray, columns: np.ndarray, tile: int) -> None:
    """That it copies what was `given` as ``P[t, columns, i]``, of ``columns[.., t * tile + i]``."""
    wanted = np.moveaxis(columns.reshape(*columns.shape[:-1], -1, tile), -2, 0)
    out = tvm.runtime.tensor(np.full(wanted.shape, np.nan, "float32"))
    tvm.compile(module, target="llvm")["main"](tvm.runtime.tensor(given), out)
    assert (out.numpy() == wanted).all()
