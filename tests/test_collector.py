"""The garbage collector's threshold: raised while a table is made, and always put back."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

import personainfer as pi
from personainfer.collector import keep, rarely_collecting

from .builders import pairs


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_the_threshold_is_raised_for_a_time() -> None:
    gc.set_threshold(700, 10, 10)
    with rarely_collecting():
        assert gc.get_threshold()[0] > 10_000
        with rarely_collecting():
            pass
        assert gc.get_threshold()[0] > 10_000  # until the last of several runs ends
    assert gc.get_threshold() == (700, 10, 10)


def test_it_is_put_back_after_an_error() -> None:
    gc.set_threshold(700, 10, 10)
    with pytest.raises(KeyError), rarely_collecting():
        raise KeyError
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize("chosen", [(0, 10, 10), (100_000, 5, 5)])
def test_what_the_user_has_set_is_left_alone(chosen: tuple[int, int, int]) -> None:
    gc.set_threshold(*chosen)
    with rarely_collecting():
        assert gc.get_threshold() == chosen
    assert gc.get_threshold() == chosen


def test_what_the_user_sets_meanwhile_stays() -> None:
    gc.set_threshold(700, 10, 10)
    with rarely_collecting():
        gc.set_threshold(5_000, 10, 10)
    assert gc.get_threshold() == (5_000, 10, 10)


def test_a_run_leaves_it_as_it_was(endpoint: dict[str, Any]) -> None:
    before = gc.get_threshold()
    pi.infer_personas(pairs(3), **endpoint)
    assert gc.get_threshold() == before


def test_what_is_kept_is_old_without_a_walk_and_no_object_is_lost_to_the_collector() -> None:
    gc.collect()
    with rarely_collecting():
        made = [[number] for number in range(1000)]
        keep()
        old = {id(thing) for thing in gc.get_objects(generation=2)}
        assert all(id(one) in old for one in made)
    assert not gc.get_freeze_count()
    loop: list[object] = []
    loop.append(loop)
    keep()
    del loop
    assert gc.collect() >= 1


def test_objects_that_somebody_else_has_frozen_do_not_thaw() -> None:
    gc.freeze()
    try:
        keep()
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()


class Cycle:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.me = self


@pytest.mark.parametrize("group", [3, 4096])
def test_a_loop_over_tables_from_the_cache_lets_its_own_cycles_go(
    group: int, endpoint: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each `keep` starts Python's counts anew: nothing would ever be collected in between."""
    gc.set_threshold(700, 10, 10)
    monkeypatch.setattr("personainfer.personas.infer._ROWS_KEPT", group)
    monkeypatch.setattr("personainfer.collector._KEEPS_A_WALK", 5)
    alive: weakref.WeakSet[Cycle] = weakref.WeakSet()
    for _ in range(40):
        pi.infer_personas(pairs(3), **endpoint)
        for _ in range(50):
            alive.add(Cycle())
    assert len(alive) < 1000
