"""The regulariser's own randomness, so that a run draws everything else exactly as it would without the term.

A generator on the CPU (the same numbers on every device), and the place reached in going through a bank in shuffled rounds.
Ranks of a distributed run seed it differently, so that together they see more probes.
"""
from typing import Any, Dict, List, Sequence

import torch
from torch import Tensor

ROUND_STRIDE = 1_000_003  # a prime: rounds of neighbouring seeds do not shuffle alike
SEED_LIMIT = 2**62


class Chance:
    """A seeded source of draws whose state can be saved."""

    def __init__(self, seed: int):
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)
        self.position = 0
        self._round = -1
        self._order: List[int] = []

    def normal(self, shape: Sequence[int]) -> Tensor:
        """N(0, 1), float32, on the CPU."""
        return torch.randn(tuple(shape), generator=self.generator, dtype=torch.float32)

    def timesteps(self, n: int, num_timesteps: int) -> Tensor:
        """n timesteps, uniform on 0 … num_timesteps − 1."""
        return torch.randint(0, num_timesteps, (n,), generator=self.generator)

    def deal(self, n: int, size: int) -> List[int]:
        """The next n entries of a bank of `size`: every round brings each entry once, in an order of its own."""
        dealt = []
        for _ in range(n):
            number, place = divmod(self.position, size)
            if (number, size) != (self._round, len(self._order)):
                shuffler = torch.Generator().manual_seed((self.seed + ROUND_STRIDE * (number + 1)) % SEED_LIMIT)
                self._round, self._order = number, torch.randperm(size, generator=shuffler).tolist()
            dealt.append(self._order[place])
            self.position += 1
        return dealt

    def state_dict(self) -> Dict[str, Any]:
        """Plain values and one byte tensor."""
        return {"generator": self.generator.get_state(), "position": self.position}

    def load_state_dict(self, state: Dict[str, Any], rank: int = 0) -> None:
        """Go on from `state`, which rank 0 has saved; other ranks go on from a state of their own derived from it."""
        self.generator.set_state(state["generator"].cpu())
        self.position = int(state["position"])
        if rank:
            derived = int(torch.randint(0, SEED_LIMIT, (1,), generator=self.generator))
            self.generator.manual_seed((derived + rank) % SEED_LIMIT)
