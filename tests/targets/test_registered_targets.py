from __future__ import annotations

import dataclasses

import pytest

from flextensor import targets, testing
from flextensor.targets import CUDA, Target


class TestRegistered(testing.DeviceCase):
    @pytest.fixture(params=[kind for kind in targets.available() if kind != "fpga"])
    def target(self, request: pytest.FixtureRequest) -> Target:
        if request.param == "cuda":  # kernels run on the host, so that every machine has one
            return dataclasses.replace(CUDA.from_spec("cuda:sm_80"), emulated=True)
        return targets.lookup(request.param)


class TestDesigns(testing.TargetCase):
    @pytest.fixture(params=["fpga", "fpga:zu9eg,dtype=int16", "fpga:ecp5-85k,dtype=float32"])
    def target(self, request: pytest.FixtureRequest) -> Target:
        return targets.lookup(request.param)
