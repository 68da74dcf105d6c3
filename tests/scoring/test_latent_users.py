"""A latent vector for each user: planted camps are found, also of users that nothing was fitted on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import personainfer as pi
from personainfer.exceptions import InvalidArgumentError
from personainfer.records import FloatArray, Prompt
from personainfer.scoring import LatentUsers

pytestmark = pytest.mark.heavy


def read(prompts: Sequence[Prompt], texts: Sequence[str]) -> FloatArray:
    return np.ones((len(texts), 3))


def test_a_model_that_is_not_fitted_and_features_of_another_width_are_named() -> None:
    few = choices(range(2), 1, seed=0)
    for call in (LatentUsers().predict, LatentUsers().fit_users):
        with pytest.raises(InvalidArgumentError, match="Call fit"):
            call(few)
    with pytest.raises(InvalidArgumentError, match="choices=None"):
        LatentUsers().predict(None)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="features="):
        LatentUsers("word")  # type: ignore[arg-type]
    model = LatentUsers(read, steps=1).fit(few)
    model._features = lambda prompts, texts: read(prompts, texts)[:, :2]
    with pytest.raises(InvalidArgumentError, match="2 numbers a response, and gave 3"):
        model.predict(few)


def choices(users: range, each: int, seed: int) -> list[pi.Preference]:
    """Everybody prefers good responses to bad ones; two camps disagree on the subject."""
    random = np.random.default_rng(seed)
    found = []
    for user in users:
        camp = user % 2
        for _ in range(each):
            one, other = (int(n) for n in random.integers(20, size=2))
            good = random.random() < 0.3
            sides = (
                (f"good {one}", f"bad {other}")
                if good
                else (f"{camp} {one}", f"{1 - camp} {other}")
            )
            found.append(
                pi.Preference(prompt="?", chosen=sides[0], rejected=sides[1], user=f"u{user}")
            )
    return found


def right(model: LatentUsers, asked: Sequence[pi.Preference]) -> float:
    return float((model.predict(asked) > 0).mean())


def features(prompts: Sequence[object], responses: Sequence[str]) -> FloatArray:
    kinds = ("good", "bad", "0", "1")
    return np.array([[float(text.split()[0] == kind) for kind in kinds] for text in responses])


@pytest.mark.parametrize("given", [None, features])
def test_camps_are_found(given: object) -> None:
    model = LatentUsers(given).fit(choices(range(60), 12, 0))  # type: ignore[arg-type]
    assert right(model, choices(range(60), 5, 1)) > 0.9
    new = range(100, 120)
    asked = choices(new, 6, 3)
    unknown = right(model, asked)
    assert right(model.fit_users(choices(new, 3, 2)), asked) > max(0.85, unknown + 0.1)


def test_equal_seeds_give_equal_numbers_and_leave_torch_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    torch.manual_seed(1)
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.random.get_rng_state()
    seen, asked = choices(range(10), 5, 0), choices(range(10), 2, 1)
    one, other = (LatentUsers(steps=20).fit(seen).predict(asked) for _ in range(2))
    assert (one == other).all()
    assert (torch.random.get_rng_state() == before).all()
    assert not seeded
    assert LatentUsers(steps=1).fit(seen).predict([]).tolist() == []


@pytest.mark.parametrize(
    "options", [{"dimensions": 0}, {"width": -1}, {"steps": 0}, {"kl": 0}, {"seed": -1}]
)
def test_bad_arguments(options: dict[str, int]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        LatentUsers(None, **options)


def test_choices_may_come_from_a_generator() -> None:
    seen = choices(range(4), 3, 0)
    model = LatentUsers(steps=1).fit(one for one in seen)
    assert (model.predict(seen) == LatentUsers(steps=1).fit(seen).predict(seen)).all()


def test_a_model_from_a_pickle_without_the_width_of_its_features_predicts() -> None:
    seen = choices(range(4), 3, 0)
    model = LatentUsers(features, steps=1).fit(seen)
    state = {name: value for name, value in vars(model).items() if name != "_features_width"}
    old = LatentUsers.__new__(LatentUsers)
    vars(old).update(state)
    assert (old.predict(seen) == model.predict(seen)).all()
