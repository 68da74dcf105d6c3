"""What stands before a prompt, so that a model answers for one user.

The kinds are those of FamousPersona (arXiv 2505.13257): none, an opaque tag, the user's name, examples of
the user's choices, a persona, and a gold persona. The words are in the folder `prompts`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..exceptions import DataError, InvalidArgumentError
from ..records import Message, Persona, Preference
from ..tailoring.bm25 import BM25
from .prompts import prefix_examples, prefix_name, prefix_persona
from .records import UserPersona, UserPersonas
from .similar_users import Embed, cosines, embedded, prompt_text

__all__ = ["Kind", "Prefix", "persona_prefix"]

Kind = Literal["none", "tag", "name", "few-shot", "persona", "gold"]
Retrieve = Literal["random", "bm25", "embedding"]
Show = Literal["chosen", "rejected", "both"]
Prompt = str | tuple[Message, ...]
Floats = npt.NDArray[np.float64]
AnyPersona = UserPersona | Persona | str

_KINDS = ("none", "tag", "name", "few-shot", "persona", "gold")


class Prefix:
    """A prefix for any user and prompt: made by `persona_prefix`, asked by `text` and `messages`."""

    def __init__(
        self,
        kind: Kind,
        texts: Mapping[str, str] | None,
        examples: Examples | None,
        role: Literal["system", "user"],
    ) -> None:
        self.kind = kind
        self.role = role
        self._texts = texts
        self._examples = examples
        self._stand_in: Mapping[str, str] = {}

    def __repr__(self) -> str:
        return f"Prefix({self.kind!r}{', shuffled' if self._stand_in else ''})"

    @property
    def users(self) -> tuple[str, ...]:
        """The users that it knows; empty where it needs to know nothing of them."""
        if self._examples is not None:
            return self._examples.users
        return () if self._texts is None else tuple(self._texts)

    @property
    def needs_users(self) -> bool:
        """Whether it can say something of those in `users` only."""
        return self._examples is not None or self._texts is not None

    def text(self, user: str, prompt: Prompt) -> str:
        """What is said before the prompt; "" for the kind "none".

        Raises:
            DataError: nothing is known of this user.
        """
        asker, user = user, self._stand_in.get(user, user)
        if self._examples is not None:
            without = None if asker == user else asker  # the control shows nothing of the own
            return prefix_examples(self._examples.of(user, prompt, without), self._examples.show)
        if self._texts is None:
            known_by_id = {"tag": user_tag, "name": prefix_name}
            return "" if self.kind == "none" else known_by_id[self.kind](user)
        if user not in self._texts:
            raise DataError(
                f"the prefix {self.kind!r} knows nothing of user {user!r}.",
                hint=f"It knows {len(self._texts):,} users; leave the others out.",
            )
        return self._texts[user]

    def messages(self, user: str, prompt: Prompt) -> tuple[Message, ...]:
        """The conversation to answer: the prefix as a system message, or before the last user turn.

        A conversation that has a system message keeps it: the prefix stands before its words.
        """
        return self.around(self.text(user, prompt), prompt)

    def around(self, said: str, prompt: Prompt) -> tuple[Message, ...]:
        """The conversation with these words where the prefix stands; as it is for ""."""
        turns = (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt
        if not said:
            return turns
        places = [n for n, turn in enumerate(turns) if turn.role == self.role]
        if not places:
            return (Message(role=self.role, content=said), *turns)
        place = places[0] if self.role == "system" else places[-1]
        turn = turns[place]
        joined = turn.model_copy(update={"content": f"{said}\n\n{turn.content}"})
        return (*turns[:place], joined, *turns[place + 1 :])

    def shuffled(self, seed: int = 0) -> Prefix:
        """The control: each user gets the prefix of another one, never the own.

        Raises:
            InvalidArgumentError: the prefix says nothing of users, or knows fewer than two.
        """
        users = list(self.users)
        if len(users) < 2:
            raise InvalidArgumentError(
                f"the prefix {self.kind!r} knows {len(users)} users; two are needed to shuffle them."
            )
        order = np.random.default_rng(seed).permutation(len(users))
        other = Prefix(self.kind, self._texts, self._examples, self.role)
        other._stand_in = {
            users[one]: users[next_] for one, next_ in zip(order, np.roll(order, 1), strict=True)
        }
        return other


class Examples:
    """The choices of users, and which of them are shown for a prompt."""

    def __init__(
        self,
        history: Iterable[Preference],
        k: int,
        retrieve: Retrieve,
        show: Show,
        embed: Embed | None,
        neighbours: Mapping[str, Sequence[str]] | None,
        seed: int,
    ) -> None:
        self.show = show
        self._k, self._retrieve, self._embed, self._seed = k, retrieve, embed, seed
        self._neighbours = neighbours
        self._choices: dict[str, list[Preference]] = {}
        for place, choice in enumerate(history):
            if not isinstance(choice, Preference):
                raise InvalidArgumentError(f"history[{place}] is {choice!r:.40}, no Preference.")
            if choice.user is None:
                raise DataError(
                    f"history[{place}] has no user.", hint="Leave it out, or say whose it is."
                )
            self._choices.setdefault(choice.user, []).append(choice)
        self._vectors: dict[str, Floats] = {}
        if embed is not None:
            texts = [prompt_text(c.prompt) for choices in self._choices.values() for c in choices]
            self._vectors = dict(zip(texts, embedded(texts, embed), strict=True)) if texts else {}

    @property
    def users(self) -> tuple[str, ...]:
        return tuple(self._choices if self._neighbours is None else self._neighbours)

    def of(self, user: str, prompt: Prompt, without: str | None = None) -> list[Preference]:
        """Up to k choices, the most fitting last; never one on the very prompt that is asked."""
        asked = prompt_text(prompt).strip()
        pool = [choice for choice in self._pool(user) if choice.user != without]
        known = [c for c in pool if prompt_text(c.prompt).strip() != asked]
        if len(known) <= self._k and self._retrieve == "random":
            return known
        scores = self._scores(user, asked, [prompt_text(c.prompt) for c in known])
        best = np.argsort(-scores, kind="stable")[: self._k]
        return [known[place] for place in best[::-1]]

    def _pool(self, user: str) -> list[Preference]:
        sources = [user] if self._neighbours is None else self._neighbours.get(user)
        if sources is None or (self._neighbours is None and user not in self._choices):
            raise DataError(
                f"the history has no choice of user {user!r}.", hint="Leave the user out."
            )
        return [choice for source in sources for choice in self._choices.get(source, ())]

    def _scores(
        self, user: str, asked: str, texts: Sequence[str]
    ) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        if self._retrieve == "bm25":
            found = BM25(texts).scores(asked)
        elif self._retrieve == "embedding" and self._embed is not None and texts:
            query = embedded([asked], self._embed)
            found = cosines(query, [self._vectors[text] for text in texts])[0]
        else:  # by user and prompt, whatever else was asked before
            name = f"{self._seed}\0{user}\0{asked}".encode()
            draw = np.random.default_rng(list(hashlib.sha256(name).digest()))
            found = draw.random(len(texts))
        return found


def persona_prefix(
    kind: Kind,
    *,
    personas: UserPersonas | Mapping[str, AnyPersona] | None = None,
    names: Mapping[str, str] | None = None,
    history: Iterable[Preference] | None = None,
    k: int = 2,
    retrieve: Retrieve = "random",
    show: Show = "chosen",
    embed: Embed | None = None,
    neighbours: Mapping[str, Sequence[str]] | None = None,
    role: Literal["system", "user"] = "system",
    seed: int = 0,
) -> Prefix:
    """What stands before a prompt, so that a model answers for one user.

    Args:
        kind: "none"; "tag": an opaque mark of the user; "name": the user's name; "few-shot": examples
            of the user's choices; "persona": inferred from choices; "gold": written by somebody who
            knows the user, an upper bound that leaks.
        personas: by user, for "persona" and "gold": what `infer_user_personas` returned, or records or
            texts. A user that is a number is the one of that text.
        names: what users are called, for "name"; None: by their id.
        history: choices with `user`, for "few-shot".
        k: how many examples.
        retrieve: "random": any of them, by `seed`; "bm25" or "embedding": those whose prompt is nearest
            to the one that is asked. A choice on that very prompt is never shown.
        show: which responses an example shows.
        embed: for "embedding": texts -> vectors, such as `SentenceTransformer(…).encode`.
        neighbours: users whose choices are shown in place of the own, from `nearest_users`: what
            PersonalLLM (arXiv 2409.20296, section 4.2) calls learning across users.
        role: whether the prefix is a system message or part of the user's last turn; some chat
            templates know no system message.
        seed: of the random examples.

    Returns:
        A `Prefix`: `text(user, prompt)`, `messages(user, prompt)`, and `shuffled(seed)`, the control in
        which each user gets the prefix of another one.

    Raises:
        InvalidArgumentError: what the kind needs is missing, or what it has no use for is given.
    """
    InvalidArgumentError.check("kind", kind, _KINDS)
    InvalidArgumentError.check("role", role, ("system", "user"))
    needed = {"persona": "personas", "gold": "personas", "few-shot": "history"}.get(kind)
    given = {"personas": personas, "names": names, "history": history, "neighbours": neighbours}
    if needed is not None and given[needed] is None:
        raise InvalidArgumentError(f"the prefix {kind!r} needs {needed}=.")
    uses = {needed, *({"few-shot": ["neighbours"], "name": ["names"]}.get(kind, []))}
    for name, value in given.items():
        if value is not None and name not in uses:
            raise InvalidArgumentError(f"the prefix {kind!r} has no use for {name}=.")
    if kind == "few-shot":
        _check_examples(k, retrieve, show, embed)
        shown = Examples(history or (), k, retrieve, show, embed, neighbours, seed)
        return Prefix(kind, None, shown, role)
    texts = None
    if personas is not None:
        people = personas.personas if isinstance(personas, UserPersonas) else personas
        texts = {user: prefix_persona(said) for user, said in _said("personas", people).items()}
    elif names is not None:
        texts = {user: prefix_name(name) for user, name in _said("names", names).items()}
    return Prefix(kind, texts, None, role)


def user_tag(user: str) -> str:
    """A mark that tells users apart and says nothing about them."""
    return f"<user_{hashlib.sha256(user.encode()).hexdigest()[:8]}>"


def _said(name: str, given: object) -> dict[str, str]:
    """The texts by the users' ids, which are texts in the data too."""
    if not isinstance(given, Mapping):
        raise InvalidArgumentError(f"{name}={given!r:.80} is no mapping of users to texts.")
    for user, one in given.items():
        if not isinstance(one, str | Persona | UserPersona) or not str(one).strip():
            raise InvalidArgumentError(
                f"{name}[{user!r}]={one!r:.80} says nothing.", hint="Leave the user out."
            )
    return {str(user): str(one) for user, one in given.items()}


def _check_examples(k: int, retrieve: str, show: str, embed: Embed | None) -> None:
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise InvalidArgumentError(f"k={k!r} must be a whole number from 1 up.")
    InvalidArgumentError.check("retrieve", retrieve, ("random", "bm25", "embedding"))
    InvalidArgumentError.check("show", show, ("chosen", "rejected", "both"))
    if (embed is None) == (retrieve == "embedding"):
        wrong = "needs" if embed is None else "has no use for"
        raise InvalidArgumentError(f"retrieve={retrieve!r} {wrong} embed=.")
