from __future__ import annotations

import pytest

from flextensor import targets, testing
from flextensor.targets import Target


class TestRegistered(testing.TargetCase):
    @pytest.fixture(params=targets.available())
    def target(self, request: pytest.FixtureRequest) -> Target:
        return targets.lookup(request.param)
