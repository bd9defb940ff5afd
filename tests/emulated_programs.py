"""Kernels of a card, run in emulation beside a reference."""

from __future__ import annotations

import dataclasses

import numpy as np

from flextensor.buffers import relative_error
from flextensor.operators import Workload
from flextensor.targets import CUDA, launches
from flextensor.targets.cuda_architectures import ARCHITECTURES
from flextensor.targets.cuda_emulation import EmulatedFunction, compiled


def card(arch: str, emulated: bool = False) -> CUDA:
    """A card of an architecture, the same whether or not this machine has one."""
    return dataclasses.replace(CUDA._of(ARCHITECTURES[arch]), emulated=emulated)


def error(workload: Workload, program: launches.Program, source: str = "") -> float:
    """Of a program in emulation, or of another source in its place."""
    inputs = workload.inputs(0)
    want = workload.reference(inputs)
    got = np.full(want.shape, np.nan, "float32")
    kernels = compiled(source or program.source)
    EmulatedFunction(kernels, program.functions["main"])(*inputs, got)
    return relative_error(got, want)
