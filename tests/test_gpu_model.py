"""The analytic model of CUDA kernels: each of its terms, and that it ranks as it must."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from flextensor.cost_models import gpu, gpu_memory, gpu_work
from flextensor.cost_models.gpu import Busy, Prediction, occupancy
from flextensor.errors import IllegalConfigError
from flextensor.operators import Gemm, Workload, parse
from flextensor.schedulers import schedule, space
from flextensor.schedulers.gpu_estimate import together, waves
from flextensor.targets import CUDA, launches, lookup
from flextensor.targets.cuda_architectures import ARCHITECTURES
from flextensor.targets.cuda_compiler import Resources

A100 = ARCHITECTURES["sm_80"]
WARP = np.arange(32)[None, :]


@pytest.fixture(scope="module")
def target() -> CUDA:
    found = lookup("cuda:sm_80")
    assert isinstance(found, CUDA)
    return found


@pytest.mark.parametrize(
    ("block", "registers", "shared", "resident"),
    [
        (256, 32, 0, 8),  # threads: 2048 / 256
        (32, 16, 0, 32),  # blocks
        (256, 128, 0, 2),  # registers: 65536 / (256 * 128)
        (256, 33, 0, 6),  # 33 registers take 40 of each lane: 1280 for a warp
        (128, 32, 40 << 10, 4),  # shared memory: 164 KiB / (40 + 1)
        (1024, 65, 0, 0),  # does not fit at all
    ],
)
def test_occupancy_is_the_least_of_four_limits(
    block: int, registers: int, shared: int, resident: int
) -> None:
    assert occupancy(block, Resources(registers, shared), A100) == resident


def test_neighbours_ask_for_few_sectors_and_columns_for_many() -> None:
    assert gpu_memory.sectors(WARP * 4, 4) == (4, 4, 1)
    assert gpu_memory.sectors(WARP * 128, 4) == (32, 32, 8)
    assert gpu_memory.sectors(WARP * 0, 4) == (1, 1, 1)
    assert gpu_memory.sectors(WARP * 16, 16) == (16, 16, 4)
    half = np.where(WARP < 8, WARP * 4, -1)
    assert gpu_memory.sectors(half, 4) == (1, 1, 1)


def test_what_is_used_again_misses_once() -> None:
    walk = np.arange(8)[:, None] * 4 + WARP * 4096  # each thread along a row of its own
    asked, missed, _ = gpu_memory.sectors(walk, 4)
    assert (asked, missed) == (32, 4)


@pytest.mark.parametrize(
    ("address", "size", "cycles"),
    [
        (WARP * 4, 4, 1),  # a bank each
        (WARP * 8, 4, 2),
        (WARP * 128, 4, 32),  # all in one bank
        (WARP * 132, 4, 1),  # the same, padded by a word
        (WARP * 0, 4, 1),  # broadcast
        (WARP * 16, 16, 4),  # quarter warps
    ],
)
def test_bank_conflicts_take_cycles(address: Any, size: int, cycles: int) -> None:
    assert gpu_memory.bank_cycles(address[0], size) == cycles


def test_neighbouring_words_are_loaded_as_vectors() -> None:
    words = [(WARP[0] * 16 + 4 * i, 4) for i in range(4)]
    assert [size for _, size in gpu_memory.merged(words)] == [16]
    assert [size for _, size in gpu_memory.merged(words[1:])] == [4, 8]
    assert [size for _, size in gpu_memory.merged([words[0], words[2]])] == [4, 4]


def test_what_overlaps_takes_between_the_longest_and_all_of_it() -> None:
    assert together(3.0, 0.0) == 3.0
    assert 3.0 < together(3.0, 3.0) < 4.0
    assert together(0.0) == 0.0


def test_a_wave_that_is_not_full_takes_a_wave() -> None:
    full, more = waves(8, 4, 100.0, 1000.0), waves(9, 4, 100.0, 1000.0)
    assert full == pytest.approx(2 * together(400.0, 1100.0))
    assert more - full == pytest.approx(together(100.0, 1100.0))


def work_of(workload: Workload, target: CUDA, **knobs: Any) -> tuple[gpu_work.Work, Prediction]:
    """What one block of a GEMM does, and the model's view of it."""
    func = workload.prim_func()
    config = {**space(func, target).seeds[0], **{f"gemm.{k}": v for k, v in knobs.items()}}
    module = schedule(func, target, config)
    program, kernels = launches.lowered(module, target.tvm_target())
    (launch,) = program.functions["main"].launches
    work = gpu_work.of_block(kernels[launch.kernel], launch.grid, launch.block)
    return work, gpu.judge(target, module).prediction


TILE: dict[str, Any] = {
    "y_virtual": 1, "y_threads": 16, "y_inner": 4, "x_virtual": 1, "x_threads": 16, "x_inner": 4,
    "k_tile": 8, "k_unroll": 1, "staged": "both", "vector": 1,
    "pad": 0, "prefetch": "none", "out_vector": 1, "k_split": 1, "k_turn": 0,
}  # fmt: skip


def test_the_work_of_a_gemm_is_counted(target: CUDA) -> None:
    work, _ = work_of(Workload(Gemm(m=256, n=256, k=128)), target, **TILE)
    assert work.threads == 256
    assert work.multiply_adds == 64 * 64 * 128 / 32
    assert work.barriers == 2 * 16 * 8  # two a panel, each of eight warps
    # both panels come once: 64 x 128 floats each; the tile goes out with a stride of four words
    assert work.missed == 2 * 64 * 128 * 4 / 32
    assert work.stored == 4 * (64 * 64 * 4 / 32)
    assert work.rounds == 2 * 16  # the loads of each panel, of each operand


def test_what_is_fetched_ahead_is_not_waited_for(target: CUDA) -> None:
    gemm = Workload(Gemm(m=256, n=256, k=128))
    ahead, _ = work_of(gemm, target, **TILE | {"prefetch": "register"})
    plain, _ = work_of(gemm, target, **TILE)
    assert ahead.missed == plain.missed and ahead.multiply_adds == plain.multiply_adds
    assert ahead.rounds == 2  # the first panels
    assert ahead.rounds < plain.rounds


def test_parts_of_a_long_sum_fill_the_device(target: CUDA) -> None:
    gemm = Workload(Gemm(m=64, n=64, k=8192))
    whole = work_of(gemm, target, **TILE)[1].seconds
    func = gemm.prim_func()
    config = space(func, target).seeds[0] | {f"gemm.{k}": v for k, v in TILE.items()}
    parts = gpu.judge(target, schedule(func, target, config | {"gemm.k_split": 32})).prediction
    assert len(parts.kernels) == 2 and parts.seconds < whole / 4


def test_threads_that_share_a_row_read_it_at_once(target: CUDA) -> None:
    gemv = Workload(parse("gemv", {"m": "1024", "k": "4096"}))
    func = gemv.prim_func()
    seeds = space(func, target).seeds
    along = next(s for s in seeds if s["gemv.neighbours"] == "k" and s["gemv.vector"] == 4)
    across = next(s for s in seeds if s["gemv.neighbours"] == "q")
    fast, slow = (gpu.judge(target, schedule(func, target, s)).prediction for s in (along, across))
    assert fast.seconds < slow.seconds
    assert fast.seconds > 1024 * 4096 * 4 / target.bandwidth()


def test_reuse_in_registers_pays(target: CUDA) -> None:
    gemm = Workload(Gemm(m=1024, n=1024, k=1024))
    _, small = work_of(gemm, target, **{**TILE, "y_inner": 1, "x_inner": 1})
    _, large = work_of(gemm, target, **TILE)
    assert small.seconds > 2 * large.seconds
    assert small.kernels[0].bound == "local"
    peak = gemm.flops / target.peak_flops()
    assert peak < large.seconds < 3 * peak


def test_one_thread_a_block_is_hopeless(target: CUDA) -> None:
    gemm = Workload(Gemm(m=1024, n=1024, k=1024))
    _, alone = work_of(gemm, target, **{**TILE, "y_threads": 1, "x_threads": 1})
    _, many = work_of(gemm, target, **TILE)
    assert alone.seconds > 2 * many.seconds
    assert "occupancy" in many.summary and "bound by" in many.summary


def test_what_only_moves_data_is_bound_by_memory(target: CUDA) -> None:
    shift = Workload(parse("shift_conv2d", {"channels": "512", "height": "256", "width": "256"}))
    func = shift.prim_func()
    config = space(func, target).seeds[0]
    found = gpu.judge(target, schedule(func, target, config)).prediction
    assert found.seconds > shift.bytes / target.bandwidth()
    assert max(found.kernels, key=lambda k: k.seconds).bound in ("memory", "L2", "fill")


def test_spills_and_what_cannot_launch_are_refused(target: CUDA) -> None:
    func = Workload(Gemm(m=64, n=64, k=64)).prim_func()
    module = schedule(func, target, space(func, target).seeds[0])
    program, kernels = launches.lowered(module, target.tvm_target())
    main = program.functions["main"]
    with pytest.raises(IllegalConfigError, match="main_kernel spills 12 bytes"):
        gpu.predict(target, main, kernels, {"main_kernel": Resources(255, 0, 4, 8)})
    with pytest.raises(IllegalConfigError, match="no block of main_kernel fits"):
        gpu.predict(target, main, kernels, {"main_kernel": Resources(32, 1 << 20)})


def test_a_faster_card_is_modelled_as_one() -> None:
    seconds = {}
    for arch in ("sm_75", "sm_80", "sm_90"):
        found = lookup(f"cuda:{arch}")
        assert isinstance(found, CUDA)
        _, seconds[arch] = work_of(Workload(Gemm(m=2048, n=2048, k=512)), found, **TILE)
    ranked = sorted(seconds, key=lambda arch: seconds[arch].seconds)
    assert ranked == ["sm_90", "sm_80", "sm_75"]


def test_every_part_can_be_the_busiest() -> None:
    work = gpu_work.Work(32)
    busiest = {
        "issue": dataclasses.replace(work, integer=1e3),
        "compute": dataclasses.replace(work, multiply_adds=1e3),
        "local": dataclasses.replace(work, shared_cycles=1e3),
        "fill": dataclasses.replace(work, stored=1e3),
    }
    for part, own in busiest.items():
        assert Busy.of(own, A100).most == part
    assert math.isfinite(Busy.of(work, A100).cycles)
