"""From `regularization_config`, however nested, to parts; and from any configuration to plain values."""
from typing import Any, Callable, List, Mapping, Optional, Sequence


def build(node: Any, instantiate: Callable[..., Any], name: str = "regularization_config") -> Any:
    """`node` with every mapping that has a `target` built, the innermost first; an entry `X_config` becomes the argument `X`.

    instantiate: from {"target": name} and keyword arguments to an object. Raises ValueError for an `X_config` that names no target.
    """
    if isinstance(node, Mapping):
        if name.endswith("_config") and "target" not in node:
            raise ValueError(f"{name} has no target: it must name a class (and may give it params)")
        built = {key: build(value, instantiate, key) for key, value in node.items()}
        if "target" not in node:
            return built
        params = built.get("params") or {}
        return instantiate({"target": node["target"]}, **{_as_argument(key): value for key, value in params.items()})
    return [build(entry, instantiate, name) for entry in node] if _is_list(node) else node


def _as_argument(key: str) -> str:
    return key[: -len("_config")] if key.endswith("_config") else key


def plain(node: Any) -> Any:
    """`node` as dictionaries, lists and values that json can write."""
    if isinstance(node, Mapping):
        return {str(key): plain(value) for key, value in node.items()}
    if _is_list(node):
        return [plain(entry) for entry in node]
    return node if node is None or isinstance(node, (bool, int, float, str)) else repr(node)


def _is_list(node: Any) -> bool:
    return isinstance(node, Sequence) and not isinstance(node, (str, bytes))


def as_texts(condition: Any) -> Optional[List[str]]:
    """The captions, if the condition is a batch of texts."""
    return list(condition) if _is_list(condition) and condition and all(isinstance(text, str) for text in condition) else None
