"""Pretrain a language model on your own text.

    import seedbed
    model = seedbed.load("runs/demo-en")
    model.fill_mask("Alice was beginning to get very [MASK].")

What is public is listed in `__all__`; heavy libraries are imported when a function first needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seedbed.runtime import prepare_environment

if TYPE_CHECKING:
    from seedbed.api import LoadedModel, load

__all__ = ["LoadedModel", "__version__", "load"]

__version__ = "0.1.0"

prepare_environment()


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that `import seedbed` does not load torch."""
    if name in ("LoadedModel", "load"):
        from seedbed import api

        return getattr(api, name)
    raise AttributeError(f"module 'seedbed' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
