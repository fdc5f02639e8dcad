"""What a yaml may say, checked where it is read; each raises a ValueError that names the key."""
import math
from typing import Sequence


def positive(number: float, key: str) -> float:
    if not 0 < float(number) < math.inf:
        raise ValueError(f"{key} is {number}; expected a number above 0")
    return float(number)


def not_negative(number: float, key: str) -> float:
    if not 0 <= float(number) < math.inf:
        raise ValueError(f"{key} is {number}; expected a number of at least 0")
    return float(number)


def whole(number: int, key: str, least: int = 1) -> int:
    if int(number) != number or number < least:
        raise ValueError(f"{key} is {number}; expected a whole number of at least {least}")
    return int(number)


def one_of(known: Sequence[str], given: str, key: str) -> str:
    if given not in known:
        raise ValueError(f"{key} is {given!r}; expected one of {', '.join(known)}")
    return given
