from __future__ import annotations

import dataclasses

import pytest

from flextensor import targets, testing
from flextensor.targets import CUDA, Target


class TestRegistered(testing.TargetCase):
    @pytest.fixture(params=targets.available())
    def target(self, request: pytest.FixtureRequest) -> Target:
        if request.param == "cuda":  # kernels run on the host, so that every machine has one
            return dataclasses.replace(CUDA.from_spec("cuda:sm_80"), emulated=True)
        return targets.lookup(request.param)
