"""Stand-in for the published repository: objects from `target` and `params`."""
import importlib


def instantiate_from_config(config, **kwargs):
    """The class or function `target`, called with `params` and keyword arguments; a KeyError without `target`."""
    module, name = config["target"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(**config.get("params", {}), **kwargs)
