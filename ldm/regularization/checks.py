"""What a yaml may say, checked where it is read; each raises a ValueError that names the key."""
import math
from typing import Any, Sequence


def is_number(given: Any) -> bool:
    """Whether it is a finite number, and no text that looks like one."""
    return isinstance(given, (int, float)) and not isinstance(given, bool) and math.isfinite(given)


def is_whole(given: Any, least: int) -> bool:
    """Whether it is a whole number of at least `least`."""
    return is_number(given) and int(given) == given and given >= least


def positive(number: float, key: str) -> float:
    if not is_number(number) or number <= 0:
        raise ValueError(f"{key} is {number!r}; expected a number above 0")
    return float(number)


def not_negative(number: float, key: str) -> float:
    if not is_number(number) or number < 0:
        raise ValueError(f"{key} is {number!r}; expected a number of at least 0")
    return float(number)


def whole(number: int, key: str, least: int = 1) -> int:
    if not is_whole(number, least):
        raise ValueError(f"{key} is {number!r}; expected a whole number of at least {least}")
    return int(number)


def one_of(known: Sequence[str], given: str, key: str) -> str:
    if given not in known:
        raise ValueError(f"{key} is {given!r}; expected one of {', '.join(known)}")
    return given


def part_of(kind: type, given: Any, key: str) -> None:
    if not isinstance(given, kind):
        found = "empty" if given is None else f"a {type(given).__name__}"
        raise ValueError(f"{key} is {found}; expected a {kind.__name__}, such as those of {kind.__module__}")
