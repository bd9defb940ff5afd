"""The Q-method of FlexTensor (ASPLOS 2020, section 5.1): a network picks the way from each start.

State: a point. Action: a direction, one knob one step. Reward of a move from p to e: how much
faster e is, ``log2(seconds(p) / seconds(e))`` and not the published (E_e - E_p) / E_p, which
rewards a gain without bound and punishes a loss by less than 1; it is clipped to [-2, 2], and a
failure or an illegal move costs `PENALTY`. Like the published one, it has no unit, so that what
is learned does not depend on how fast the kernel is. Visited points are never proposed again.
`flextensor.explorers.policies` keeps what was learned for later searches.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flextensor.explorers.history import Proposer
from flextensor.schedulers.space import Point, Space

if TYPE_CHECKING:
    import numpy as np

HIDDEN = 64
LAYERS = 4
TRAIN_EVERY = 5
"""Trials between two trainings, at least."""
STEPS, BATCH = 24, 32
"""Gradient steps of a training, and moves in each."""
REPLAY = 2048
"""Moves that are remembered, the latest ones."""
DISCOUNT = 0.5
"""A move is worth most for where it leads at once: searches are tens of trials long."""
PENALTY = -1.0
MOST = 2.0
EXPLORE_FROM, EXPLORE_TO, EXPLORE_TRIALS = 0.8, 0.1, 64.0
"""Probability of a random direction: falls from the first to the second over so many trials."""


class QMethod(Proposer):
    """One direction per annealed start, chosen by a Q-network that learns from every trial."""

    def __init__(self, space: Space, rng: np.random.Generator) -> None:
        super().__init__(space, rng)
        self._directions = space.ways
        self._walls: set[tuple[Point, int]] = set()
        self._replay: deque[tuple[Point, int, float, Point | None]] = deque(maxlen=REPLAY)
        self._untrained = 0
        self._taught = False
        self._seed = int(rng.integers(2**31))
        self._network: Any = None
        self._target: Any = None

    def tell(self, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Remember what was measured, and learn from every move between it and what was known."""
        super().tell(points, seconds)
        for point in points:
            for action in range(len(self._directions)):
                other = self._moved(point, action)
                if other in self.history.seconds:
                    self._learn(point, action, other)
                    back = self._back(point, action)
                    if self._moved(other, back) == point:
                        self._learn(other, back, point)
        self._untrained += len(points)
        if self._untrained >= TRAIN_EVERY and self._replay:
            self._train()
            self._untrained = 0

    def _moved(self, point: Point, action: int) -> Point | None:
        """Where a direction leads from a point, legal or not; None when there is nothing."""
        return self.space.moved(point, *self._directions[action])

    def _back(self, point: Point, action: int) -> int:
        """The direction that leads back to a point from where `action` leads."""
        dimension, way = self._directions[action]
        ordered = self.space.knobs[dimension].ordered
        return self._directions.index((dimension, -way if ordered else point[dimension]))

    def _learn(self, start: Point, action: int, end: Point) -> None:
        """Remember a move from a point that works."""
        before, after = self.history.seconds[start], self.history.seconds[end]
        if math.isfinite(before):
            ahead = end if math.isfinite(after) else None
            self._replay.append((start, action, reward(before, after), ahead))

    @property
    def weights(self) -> dict[str, Any]:
        """Those of the network, by name; none while it has learned nothing."""
        return dict(self._network.state_dict()) if self._network is not None else {}

    def follow(self, weights: Mapping[str, Any]) -> None:
        """Start from the weights of another search of the same kind of space."""
        self._networks()
        for network in (self._network, self._target):
            network.load_state_dict(weights)
        self._taught = True

    @property
    def kind(self) -> str:
        """What spaces share that one network fits: names of knobs, and values of choices."""
        text = json.dumps([[k.name, None if k.ordered else k.values] for k in self.space.knobs])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def ask(self, count: int) -> list[Point]:
        """Up to `count` points, one for every start and no more: a draft of all directions would
        leave the choice to the cost model. Uniform ones while there is nothing to start from."""
        return list(self.propose(count))[:count] or super().ask(count)

    def propose(self, count: int) -> Iterator[Point]:
        """Points one move away from annealed starts, each in the direction that promises most."""
        proposed: set[Point] = set()
        starts = list(dict.fromkeys(self.history.starts(4 * count)))
        if not starts:
            return
        values = self.values(starts)
        for start, row in zip(starts, values, strict=True):
            actions = sorted(range(len(row)), key=lambda a: -row[a])
            if self.rng.random() < self._exploring:
                self.rng.shuffle(actions)
            for action in actions:
                other = self._moved(start, action)
                if other is None or not self.space.legal(other):
                    if action == actions[0] and (start, action) not in self._walls:
                        self._walls.add((start, action))  # wanted most, and no way: learn it once
                        self._replay.append((start, action, PENALTY, None))
                elif other not in self.history.seconds and other not in proposed:
                    proposed.add(other)
                    yield other
                    break

    @property
    def _exploring(self) -> float:
        if self._taught:
            return EXPLORE_TO
        trials = len(self.history.seconds)
        return max(EXPLORE_FROM * math.exp(-trials / EXPLORE_TRIALS), EXPLORE_TO)

    def _networks(self) -> None:
        """The network and its target, made on first use (torch takes a second to import)."""
        if self._network is not None:
            return
        import torch

        inputs, outputs = (
            len(self.space.encode((0,) * len(self.space.knobs))),
            len(self._directions),
        )
        sizes = [inputs, *[HIDDEN] * (LAYERS - 1), outputs]

        def network() -> Any:
            layers: list[Any] = []
            for size, following in zip(sizes[:-1], sizes[1:], strict=True):
                layers += [torch.nn.Linear(size, following), torch.nn.ReLU()]
            return torch.nn.Sequential(*layers[:-1])

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            self._network, self._target = network(), network()
        self._target.load_state_dict(self._network.state_dict())
        self._optimizer = torch.optim.Adadelta(self._network.parameters(), lr=1.0)

    def _encode(self, points: Sequence[Point]) -> Any:
        import torch

        return torch.tensor([self.space.encode(p) for p in points], dtype=torch.float32)

    def values(self, points: Sequence[Point]) -> list[list[float]]:
        """Q of every direction from every point; zeros until something was learned."""
        if self._network is None:
            return [[0.0] * len(self._directions) for _ in points]
        import torch

        with torch.no_grad():
            values: list[list[float]] = self._network(self._encode(points)).tolist()
        return values

    def _train(self) -> None:
        """Gradient steps towards ``reward + discount * max Q'(next)``, then Q' <- Q."""
        import torch

        self._networks()
        moves = list(self._replay)
        for _ in range(STEPS):
            picks = self.rng.integers(len(moves), size=min(BATCH, len(moves))).tolist()
            batch = [moves[i] for i in picks]
            with torch.no_grad():
                ahead = self._target(self._encode([e or p for p, _, _, e in batch])).amax(1)
            wanted = torch.tensor([r for _, _, r, _ in batch])
            goes_on = torch.tensor([float(e is not None) for *_, e in batch])
            wanted = wanted + DISCOUNT * goes_on * ahead
            actions = torch.tensor([[a] for _, a, _, _ in batch])
            got = self._network(self._encode([p for p, *_ in batch])).gather(1, actions)[:, 0]
            loss = torch.nn.functional.mse_loss(got, wanted)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        self._target.load_state_dict(self._network.state_dict())


def reward(before: float, after: float) -> float:
    """log2 of the speed-up of a move, within [-2, 2]; `PENALTY` for a failure."""
    if not math.isfinite(after):
        return PENALTY
    return max(-MOST, min(MOST, math.log2(before / after)))
