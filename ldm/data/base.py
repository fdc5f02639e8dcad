"""What a streamed collection of captioned pictures has to offer, for data sets too large to index."""
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import IterableDataset


class Txt2ImgIterableBaseDataset(IterableDataset):
    """A stream of `{"image": ..., "caption": ...}` whose records are known by their ids.

    num_records: length of one pass. valid_ids: the ids of all records; `sample_ids` holds those that this process reads,
    at first all of them: a loader with several workers gives each its part. size: of the pictures, in pixels.
    """

    def __init__(self, num_records: int = 0, valid_ids: Sequence[Any] | None = None, size: int = 256):
        super().__init__()
        self.num_records = num_records
        self.valid_ids = valid_ids
        self.sample_ids = valid_ids
        self.size = size

    def __len__(self) -> int:
        return self.num_records

    @abstractmethod
    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One pass over the records of `sample_ids`."""
