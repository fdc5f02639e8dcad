"""What holds for every test: no network, as many threads as OMP_NUM_THREADS says, the same random numbers."""
from __future__ import annotations

import os

# Before any library that reads them is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import random  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

if "OMP_NUM_THREADS" in os.environ:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def seeded():
    """Each test starts from the same state of every generator, whichever tests ran before it."""
    random.seed(23)
    np.random.seed(23)
    torch.manual_seed(23)
