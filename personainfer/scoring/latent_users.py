"""Variational preference learning (VPL): infer a latent vector for each user from a few choices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..arguments import Count, CountFromZero, PositiveNumber, check_argument
from ..exceptions import MissingExtraError
from ..records import FloatArray, Preference
from .choice_models import Features, Response, encode, featured, fitted, read_choices

if TYPE_CHECKING:
    import torch

_PROJECTED = 256  # dimensions that sparse features are projected to
_LEARNING_RATE = 0.02
_WEIGHT_DECAY = 0.05


class LatentUsers:
    """A model of choices with a latent vector z for each user: VPL (arXiv 2408.10075).

    An encoder reads a user's choices, in any order and number, and computes the mean and the spread of z. A
    decoder computes the reward of a response from its features and z. Both are trained together: in each step
    the encoder reads a random half of the choices, and all choices are predicted with a z drawn from its mean
    and spread. The loss adds `kl` times the KL divergence of each z from a standard normal distribution. New
    users need no training: the encoder reads their choices.

    Args:
        features: a function (prompts, responses) -> (n, d). None: each response of the fit is a feature of
            its own, and any other response has only zeros.
        dimensions: the length of z.
        width: the width of the hidden layers.
        kl: the weight of the KL divergence.
        steps: how many steps the optimizer takes, each over all choices.
        seed: seeds the first weights and all random draws.

    Raises:
        InvalidArgumentError: an argument has a value that cannot work.
    """

    # Of the responses, before a projection. Here, since pickles of older versions have none.
    _features_width: int | None = None

    def __init__(
        self,
        features: Features | None = None,
        *,
        dimensions: int = 4,
        width: int = 32,
        kl: float = 0.1,
        steps: int = 200,
        seed: int = 0,
    ) -> None:
        self._dimensions = check_argument("dimensions", dimensions, Count)
        self._width = check_argument("width", width, Count)
        self._steps = check_argument("steps", steps, Count)
        self._kl = check_argument("kl", kl, PositiveNumber)
        self._seed = check_argument("seed", seed, CountFromZero)
        self._features = check_argument("features", features, Callable[..., Any] | None)
        self._vectors: dict[str, FloatArray] = {}

    def fit(self, choices: Iterable[Preference]) -> Self:
        """Train encoder and decoder on these choices, then infer their users' vectors.

        An earlier fit is forgotten.

        Raises:
            DataError: a choice has no user, or there are no choices.
            InvalidArgumentError: `choices` holds something else than `Preference` records, or `features`
                gives another shape or a number that is not finite.
            MissingExtraError: torch is not installed.
        """
        torch = MissingExtraError.require("torch")
        choices = read_choices("choices", choices)
        known = encode(choices)
        self._places = known.responses if self._features is None else None
        self._features_width = None
        table = self._table(list(known.responses))
        random = torch.Generator().manual_seed(self._seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed)  # those of other devices stay
            self._net = self._make(table.shape[1])
        parameters = list(self._net.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
        users = torch.tensor(known.user)
        pairs = torch.tensor(np.stack([known.chosen, known.rejected]))
        for _ in range(self._steps):
            read = torch.rand(len(users), generator=random) < 0.5
            mean, spread = self._encode(table, pairs, users, len(known.users), read)
            noise = torch.randn(mean.shape, generator=random)
            margins = self._margins(table, pairs, (mean + spread.exp() * noise)[users])
            distance = 0.5 * (mean**2 + (2 * spread).exp() - 2 * spread - 1).sum()
            loss = -torch.nn.functional.logsigmoid(margins).sum() + self._kl * distance
            optimizer.zero_grad()
            (loss / len(users)).backward()
            optimizer.step()
        self._vectors = {}
        return self._infer(choices)

    def fit_users(self, choices: Iterable[Preference]) -> Self:
        """Infer the vectors of the users of these choices, new or known. Nothing is trained.

        A known user's vector is replaced by one from these choices alone.

        Raises:
            InvalidArgumentError: `fit` was not called.
            DataError, InvalidArgumentError, MissingExtraError: as `fit`.
        """
        fitted(self._vectors or None)
        return self._infer(choices)

    def _infer(self, choices: Iterable[Preference]) -> Self:
        torch = MissingExtraError.require("torch")
        known = encode(choices)
        table, users = self._table(list(known.responses)), torch.tensor(known.user)
        pairs = torch.tensor(np.stack([known.chosen, known.rejected]))
        with torch.inference_mode():
            read = torch.ones(len(users), dtype=torch.bool)
            mean, _ = self._encode(table, pairs, users, len(known.users), read)
        found = mean.numpy().astype(np.float64)
        self._vectors |= {user: found[row] for user, row in known.users.items()}
        return self

    def predict(self, choices: Iterable[Preference]) -> FloatArray:
        """Compute the log-odds that the user prefers `chosen`, for each choice, shape (n,).

        For a user without a vector, z is zeros, the mean of the prior: the part of the reward that all users
        share decides alone.

        Raises:
            InvalidArgumentError: `fit` was not called.
            DataError, InvalidArgumentError, MissingExtraError: as `fit`; but there may be no choices.
        """
        choices = read_choices("choices", choices)
        if not choices:
            return np.zeros(0)
        fitted(self._vectors or None)
        torch = MissingExtraError.require("torch")
        known = encode(choices)
        nobody = np.zeros(self._dimensions)
        vectors = np.array([self._vectors.get(user, nobody) for user in known.users])
        with torch.inference_mode():
            of_choice = torch.tensor(vectors[known.user], dtype=torch.float32)
            pairs = torch.tensor(np.stack([known.chosen, known.rejected]))
            found = self._margins(self._table(list(known.responses)), pairs, of_choice)
        return np.asarray(found.numpy(), dtype=np.float64)

    def _make(self, size: int) -> Any:
        from torch import nn

        return nn.ModuleDict(
            {
                "embed": nn.Linear(size, self._width, bias=False),
                "read": nn.Sequential(nn.Linear(self._width, self._width), nn.Tanh()),
                "infer": nn.Linear(self._width, 2 * self._dimensions),
                "shared": nn.Linear(self._width, 1, bias=False),
                "own": nn.Linear(self._width, self._dimensions, bias=False),
            }
        )

    def _encode(
        self,
        table: torch.Tensor,
        pairs: torch.Tensor,
        users: torch.Tensor,
        count: int,
        read: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the mean and the log of the spread of each user's z, (users, dimensions) each.

        Args:
            table: features of responses, (responses, d).
            pairs: the places of the chosen and the rejected responses in `table`, (2, choices).
            users: the number of each choice's user, (choices,).
            count: the number of users.
            read: True for each choice that the encoder reads, (choices,).
        """
        one, other = (self._net["embed"](table)[side] for side in pairs)
        said = self._net["read"](one - other) * read[:, None]
        # A sum, not a mean: more choices move z further from the prior.
        total = said.new_zeros(count, self._width).index_add(0, users, said)
        mean, spread = self._net["infer"](total / 10).chunk(2, dim=1)
        return mean, spread.clamp(-4, 2)

    def _margins(
        self, table: torch.Tensor, pairs: torch.Tensor, vectors: torch.Tensor
    ) -> torch.Tensor:
        one, other = (self._net["embed"](table)[side] for side in pairs)
        found: torch.Tensor = self._net["shared"](one - other)[:, 0]
        return found + (self._net["own"](one - other) * vectors).sum(dim=1)

    def _table(self, responses: Sequence[Response]) -> torch.Tensor:
        """Compute the features of responses, (n, d). Sparse features are projected at random to 256 columns.

        With `features=None` a row is one-hot, or zeros for a response that was not in the fit.
        """
        import torch

        if self._places is not None:
            found = np.zeros((len(responses), len(self._places)), dtype=np.float32)
            for row, response in enumerate(responses):
                if response in self._places:
                    found[row, self._places[response]] = 1.0
            return torch.from_numpy(found)
        given = featured(self._features, responses, width=self._features_width)
        self._features_width = given.shape[1]
        if hasattr(given, "tocsr"):
            draw = np.random.default_rng(0).standard_normal(
                (given.shape[1], _PROJECTED), dtype=np.float32
            )
            given = given @ draw / np.sqrt(_PROJECTED)
        return torch.from_numpy(np.asarray(given, dtype=np.float32))
