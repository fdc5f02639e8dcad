"""The regulariser's own randomness: reproducible, resumable, and no business of anyone else's."""
import random
from collections import Counter

import numpy as np
import torch

from ldm.regularization.chance import Chance


def draws(chance: Chance) -> list:
    return [chance.normal((2, 3)).tolist(), chance.timesteps(5, 1000).tolist(), chance.deal(3, 7)]


def test_equal_seeds_draw_equally_and_others_do_not():
    assert draws(Chance(3)) == draws(Chance(3)) != draws(Chance(4))


def test_no_draw_touches_the_global_generators_or_depends_on_them():
    torch.manual_seed(0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = draws(Chance(3))
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1] and np.random.get_state()[1].tolist() == before[2]
    torch.manual_seed(1)
    assert draws(Chance(3)) == first


def test_every_round_deals_each_entry_once_in_an_order_of_its_own():
    chance = Chance(3)
    rounds = [chance.deal(3, 9) + chance.deal(6, 9) for _ in range(3)]
    assert all(Counter(dealt) == Counter(range(9)) for dealt in rounds)
    assert len({tuple(dealt) for dealt in rounds}) == 3


def test_a_bank_smaller_than_the_batch_is_dealt_again():
    assert sorted(Counter(Chance(1).deal(7, 3)).values()) == [2, 2, 3]


def test_state_goes_on_exactly_where_it_stood():
    chance = Chance(3)
    draws(chance)
    state = chance.state_dict()
    expected = draws(chance)
    resumed = Chance(3)
    resumed.load_state_dict(state)
    assert draws(resumed) == expected


def test_other_ranks_resume_on_numbers_of_their_own():
    state = Chance(3).state_dict()
    ranks = [Chance(3 + rank) for rank in range(3)]
    for rank, chance in enumerate(ranks):
        chance.load_state_dict(state, rank)
    first = [chance.normal((4,)).tolist() for chance in ranks]
    assert len({tuple(values) for values in first}) == 3
    again = Chance(5)
    again.load_state_dict(state, rank=2)
    assert again.normal((4,)).tolist() == first[2], "and reproducibly so"
