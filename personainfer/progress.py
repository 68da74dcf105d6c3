"""The progress bar of every run, and the rule for when it is shown."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Any, TypeVar

T = TypeVar("T")


def progress_bar(progress: bool | None, *, total: int | None, unit: str) -> Any:
    """A tqdm bar on standard error. None: shown in a terminal or a notebook. False: it does nothing."""
    return _bar_class()(total=total, unit=unit, leave=False, disable=not _is_shown(progress))


def _bar_class() -> Any:
    """The widget in a notebook that can show one; else text. (tqdm.auto would warn where it cannot.)"""
    if _in_a_notebook() and _is_installed("ipywidgets"):
        from tqdm.notebook import tqdm_notebook

        return tqdm_notebook
    from tqdm.std import tqdm

    return tqdm


def with_progress_bar(
    items: Iterable[T], progress: bool | None, *, total: int | None, unit: str = "row"
) -> Iterator[T]:
    """The items, counted by a bar as they pass."""
    return _counted(items, total, unit) if _is_shown(progress) else iter(items)


def _counted(items: Iterable[T], total: int | None, unit: str) -> Iterator[T]:
    with progress_bar(True, total=total, unit=unit) as bar:
        for item in items:
            yield item
            bar.update()


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # imported as None: hidden
        return False


def _is_shown(progress: bool | None) -> bool:
    if progress is not None:
        return progress
    return (sys.stderr is not None and sys.stderr.isatty()) or _in_a_notebook()


def _in_a_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return "ipykernel" in sys.modules and shell is not None and shell.get_ipython() is not None
