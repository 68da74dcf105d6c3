"""Prefixes: texts about a user before a prompt, which make a model answer for this user.

The kinds are those of FamousPersona (arXiv 2505.13257): none, an opaque tag, the user's name, examples of the
user's choices, a persona, and a gold persona.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from ..arguments import (
    Count,
    CountFromZero,
    by_text,
    check_argument,
    check_text,
    id_text,
    in_python,
    read_items,
)
from ..exceptions import DataError, InvalidArgumentError, shown_when_made
from ..personas.prompts import filled
from ..records import FloatArray, Message, Persona, Preference, Prompt
from ..scoring.choice_models import read_choices
from ..scoring.interfaces import check_row
from ..tailoring.bm25 import BM25
from .hypotheses import UserAtWork, refuse_leaks
from .records import ChoicesUsed, UserPersona, UserPersonas, one_spelling
from .similar_users import Embed, cosines, embedded, prompt_text

Kind = Literal["none", "tag", "name", "few-shot", "persona", "gold"]
Show = Literal["chosen", "rejected", "both"]
Retrieve = Literal["random", "bm25", "embedding"]
AnyPersona = UserPersona | Persona | str

# Which arguments of `persona_prefix` a kind uses; kinds that are not here use none of these.
_FOR_EXAMPLES = ("history", "k", "retrieve", "show", "embed", "neighbours")
_USED = {
    "name": ("names",),
    "few-shot": _FOR_EXAMPLES,
    "persona": ("personas",),
    "gold": ("personas",),
}
_NEEDED = {"few-shot": "history", "persona": "personas", "gold": "personas"}


class PrefixText(NamedTuple):
    """The text of a prefix before one choice.

    Attributes:
        text: the text; "": there is none.
        missing: how many of the k examples could not be found; 0 for kinds without examples.
    """

    text: str
    missing: int = 0


class Prefix:
    """A text before a prompt, for any user and prompt. `persona_prefix` makes it.

    Args:
        kind: as for `persona_prefix`.
        texts: user -> text, for kinds with a text for each user; None: the kind needs none.
        examples: the source of examples, for "few-shot"; None: another kind.
        role: "system": the text is a system message; "user": it is part of the user's last turn.
        stand_in: user -> the user whose text or examples are shown instead; None: everybody's own.
        sources: user -> the choices that the user's persona was made from, for `check_held_out`; None: they
            are not known, or need not be held out.
    """

    def __init__(
        self,
        kind: Kind,
        texts: Mapping[str, str] | None,
        examples: Examples | None,
        role: Literal["system", "user"],
        stand_in: Mapping[str, str] | None = None,
        sources: Mapping[str, ChoicesUsed] | None = None,
    ) -> None:
        self.kind = kind
        self.role = role
        self._texts = texts
        self._examples = examples
        self._stand_in = stand_in or {}
        self._sources = sources or {}

    @shown_when_made
    def __repr__(self) -> str:
        return f"Prefix({self.kind!r}{', shuffled' if self._stand_in else ''})"

    @property
    def users(self) -> tuple[str, ...]:
        """The users with a text or a source of examples; empty for kinds that work for any user."""
        if self._examples is not None:
            return self._examples.users
        return () if self._texts is None else tuple(self._texts)

    def works_for(self, user: str | None) -> bool:
        """Whether `text`, `before` and `messages` know this user; else they raise DataError."""
        if self._examples is not None:
            return user is not None and self._examples.knows(user)
        return self._texts is None or user in self._texts

    def check_held_out(self, users: Sequence[UserAtWork]) -> None:
        """Raise DataError if a persona was made from one of these choices of its user, as the texts tell.

        Ids do not tell: they may be places in the data, which other choices have, too.
        """
        refuse_leaks(users, self._sources, "data", by_ids=False)

    @property
    def k(self) -> int:
        """The most examples that are shown before a prompt; 0 for kinds without examples.

        Fewer are shown if the user has fewer choices that do not reveal the answer.
        """
        return 0 if self._examples is None else self._examples.k

    def text(self, user: str, prompt: Prompt) -> str:
        """Return the text before a prompt that a model will answer; "" for the kind "none".

        A choice on the same prompt is never shown as an example.

        Raises:
            DataError: the prefix does not work for this user, see `works_for`.
            InvalidArgumentError: `embed` did not return a finite vector for the prompt, or `user` is no text,
                or `prompt` no prompt.
        """
        if not isinstance(user, str):
            raise InvalidArgumentError(f"user={user!r:.80} is not the name of a user.")
        check_row(0, prompt, None, "")
        return self._text(user, prompt, None).text

    def before(self, choice: Preference) -> PrefixText:
        """Return the text before a choice that a model will predict.

        A choice that shares a response with this one is never shown as an example. Another choice on the same
        prompt may be.

        Raises:
            DataError, InvalidArgumentError: as `text`, for the user and the prompt of the choice.
        """
        return self._text(choice.user or "", choice.prompt, choice)

    def _text(self, user: str, prompt: Prompt, predicted: Preference | None) -> PrefixText:
        asker, user = user, self._stand_in.get(user, user)
        if self._examples is not None:
            without = None if asker == user else asker  # a control shows nothing of the user's own
            shown = self._examples.of(user, prompt, predicted, without)
            said = prefix_examples(shown, self._examples.show, similar=self._examples.similar)
            return PrefixText(said, self._examples.k - len(shown))
        if self._texts is None:
            of_user = {"none": lambda _: "", "tag": user_tag, "name": prefix_name}
            return PrefixText(of_user[self.kind](user))
        if user not in self._texts:
            raise DataError(
                f"the prefix {self.kind!r} knows nothing of user {user!r}.",
                hint=f"It knows {len(self._texts):,} users; leave the others out.",
            )
        return PrefixText(self._texts[user])

    def messages(self, user: str, prompt: Prompt) -> tuple[Message, ...]:
        """Return the conversation to answer: the prompt with the user's text, placed as `role` says.

        The text comes before an existing system message, in the same turn.

        Raises:
            DataError, InvalidArgumentError: as `text`.
        """
        return self.around(self.text(user, prompt), prompt)

    def around(self, said: str, prompt: Prompt) -> tuple[Message, ...]:
        """Return the prompt as a conversation with a text where the prefix puts its text.

        Args:
            said: the text; "" adds nothing.
            prompt: the prompt.
        """
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
        """Return the control: a prefix that gives each user the text or the examples of another user.

        Args:
            seed: of the draw of the other users.

        Raises:
            InvalidArgumentError: the prefix has fewer than two `users`, as kinds that work for any user have
                none; or a bad seed.
        """
        seed = check_argument("seed", seed, CountFromZero)
        users = list(self.users)
        if len(users) < 2:
            raise InvalidArgumentError(
                f"the prefix {self.kind!r} knows {len(users)} users; two are needed to shuffle them."
            )
        order = np.random.default_rng(seed).permutation(len(users))
        pairs = zip(order, np.roll(order, 1), strict=True)
        stand_in = {users[one]: users[other] for one, other in pairs}
        return Prefix(self.kind, self._texts, self._examples, self.role, stand_in)


class Examples:
    """The choices of users, and which of them to show before a prompt.

    The arguments are those of `persona_prefix`.

    Raises:
        DataError: a choice has no user.
        InvalidArgumentError: `history` holds something else than `Preference` records, or `embed` did not
            return one finite vector for each prompt.
    """

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
        self.k, self.show = k, show
        self.similar = neighbours is not None
        self._retrieve, self._embed, self._seed = retrieve, embed, seed
        self._choices: dict[str, list[Preference]] = {}
        for choice in read_choices("history", history, each="history[{}]"):
            self._choices.setdefault(choice.user or "", []).append(choice)
        # Whose choices are shown to a user. Users are texts in the data, whatever they are in the mapping.
        near = {user: [user] for user in self._choices} if neighbours is None else neighbours
        self._sources = {
            user: list(map(id_text, read_items(f"neighbours[{user!r}]", others)))
            for user, others in by_text("neighbours", near).items()
        }
        self._vectors: dict[str, FloatArray] = {}
        if embed is not None:
            texts = [prompt_text(c.prompt) for choices in self._choices.values() for c in choices]
            self._vectors = dict(zip(texts, embedded(texts, embed), strict=True)) if texts else {}

    @property
    def users(self) -> tuple[str, ...]:
        """The users for whom examples can be shown: those with a choice, or those that `neighbours` names."""
        return tuple(self._sources)

    def knows(self, user: str) -> bool:
        """Whether the user is one of `users`."""
        return user in self._sources

    def of(
        self, user: str, prompt: Prompt, predicted: Preference | None, without: str | None = None
    ) -> list[Preference]:
        """Select up to k choices that do not reveal the answer.

        Args:
            user: show choices of this user, or of the user's neighbours.
            prompt: the prompt that follows.
            predicted: the choice to predict: choices that share a response are left out; None: a response
                will be generated, and choices on the same prompt are left out.
            without: a user whose choices are left out; None: nobody's.

        Returns:
            The choices; the one with the most similar prompt is last. If they are drawn, and there are no
            more than k, they are in the order of the history.

        Raises:
            DataError: the user is not in `users`.
            InvalidArgumentError: `embed` did not return a finite vector for the prompt.
        """
        asked = prompt_text(prompt).strip()
        pool = [choice for choice in self._pool(user) if choice.user != without]
        if predicted is None:
            same = one_spelling(asked)
            known = [c for c in pool if one_spelling(prompt_text(c.prompt)) != same]
        else:
            answers = _responses(predicted)
            known = [c for c in pool if not answers & _responses(c)]
        if len(known) <= self.k and self._retrieve == "random":
            return known
        scores = self._scores(user, asked, [prompt_text(c.prompt) for c in known])
        best = np.argsort(-scores, kind="stable")[: self.k]
        return [known[place] for place in best[::-1]]

    def _pool(self, user: str) -> list[Preference]:
        if user not in self._sources:
            raise DataError(
                f"the history has no choice of user {user!r}.", hint="Leave the user out."
            )
        return [choice for one in self._sources[user] for choice in self._choices.get(one, ())]

    def _scores(self, user: str, asked: str, texts: Sequence[str]) -> FloatArray:
        if self._retrieve == "bm25":
            return BM25(texts).scores(asked)
        if self._retrieve == "embedding" and self._embed is not None and texts:
            query = embedded([asked], self._embed)
            found: FloatArray = cosines(query, [self._vectors[text] for text in texts])[0]
            return found
        # The draw depends on seed, user and prompt alone, not on earlier calls.
        name = f"{self._seed}\0{user}\0{asked}".encode("utf-8", "backslashreplace")
        draw = np.random.default_rng(list(hashlib.sha256(name).digest()))
        return draw.random(len(texts))


def _responses(choice: Preference) -> set[str]:
    return {one_spelling(text) for text in (choice.chosen, choice.rejected)}


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
    """Make a prefix: text before a prompt that makes a model answer for one user.

    No example reveals the answer: before a prompt to answer, choices on the same prompt are left out; before
    a choice to predict, choices that share a response with it.

    Args:
        kind: "none"; "tag": a code for the user; "name": the user's name; "few-shot": examples of the user's
            choices; "persona": a persona inferred from choices; "gold": a persona written by somebody who
            knows the user, which may contain the answers and is an upper bound.
        personas: for "persona" and "gold": the result of `infer_user_personas`, or user -> record or text.
            The number 7 as a user means the user "7".
        names: for "name": user -> name; None: the user's id is the name.
        history: for "few-shot": `Preference` records with `user`.
        k: for "few-shot": the most examples to show.
        retrieve: for "few-shot": "random": examples are drawn by `seed`; "bm25" or "embedding": the examples
            whose prompts are most similar to the one that follows.
        show: for "few-shot": which responses an example shows.
        embed: for "embedding": n texts -> vectors of shape (n, dimensions), such as
            `SentenceTransformer(…).encode`.
        neighbours: for "few-shot": user -> the users whose choices are shown instead of the user's own, from
            `nearest_users`: the cross-user setting of PersonalLLM (arXiv 2409.20296, section 4.2). None: the
            user's own choices are shown.
        role: "system": the prefix is a system message; "user": it is part of the user's last turn, for chat
            templates without system messages.
        seed: of the draw of examples.

    Returns:
        A `Prefix` with `text(user, prompt)`, `messages(user, prompt)`, and `shuffled(seed)`, the control in
        which each user gets the prefix of another user.

    Raises:
        InvalidArgumentError: the kind needs `personas` or `history`, which is missing; or has no use for an
            argument that has another value than its default (`role` and `seed` are good for each kind); or
            another bad argument.
        DataError: a choice in `history` has no user.
    """
    InvalidArgumentError.check("kind", kind, get_args(Kind))
    InvalidArgumentError.check("role", role, ("system", "user"))
    seed = check_argument("seed", seed, CountFromZero)
    examples = (history, k, retrieve, show, embed, neighbours)
    given = dict(zip(_FOR_EXAMPLES, examples, strict=True))
    _check_use(kind, {"personas": personas, "names": names, **given})
    if kind == "few-shot":
        k = check_argument("k", k, Count)
        _check_examples(retrieve, show, embed)
        shown = Examples(
            () if history is None else history, k, retrieve, show, embed, neighbours, seed
        )
        return Prefix(kind, None, shown, role)
    texts = None
    if personas is not None:
        people = personas.personas if isinstance(personas, UserPersonas) else personas
        texts = {user: prefix_persona(said) for user, said in _texts("personas", people).items()}
    elif names is not None:
        texts = {user: prefix_name(name) for user, name in _texts("names", names).items()}
    sources = None
    if kind == "persona" and isinstance(personas, UserPersonas):
        sources = {row.user: ChoicesUsed(row.choices) for row in personas if row.persona}
    return Prefix(kind, texts, None, role, sources=sources)


def user_tag(user: str) -> str:
    """Return a code that distinguishes users and says nothing about them."""
    return f"<user_{hashlib.sha256(user.encode('utf-8', 'backslashreplace')).hexdigest()[:8]}>"


def _texts(name: str, given: object) -> dict[str, str]:
    """Read the argument `name`, a mapping of users to texts or personas, as user -> text.

    Raises:
        InvalidArgumentError: it is no mapping, has a user twice (7 and "7"), or a text is missing or blank.
    """
    if not isinstance(given, Mapping):
        raise InvalidArgumentError(f"{name}={given!r:.80} is not a mapping of users to texts.")
    for user, one in given.items():
        if not isinstance(one, str | Persona | UserPersona) or not str(one).strip():
            raise InvalidArgumentError(
                f"{name}[{user!r}]={one!r:.80} says nothing.", hint="Leave the user out."
            )
        check_text(f"{name}[{user!r}]", str(one), name)
    return {user: str(one) for user, one in by_text(name, given).items()}


def _check_use(kind: Kind, given: Mapping[str, object]) -> None:
    """Raise InvalidArgumentError if an argument is missing that the kind needs, or given without a use."""
    needed = _NEEDED.get(kind)
    if needed is not None and given[needed] is None:
        raise InvalidArgumentError(f"the prefix {kind!r} needs {needed}=.", argument=needed)
    defaults = inspect.signature(persona_prefix).parameters
    for name, value in given.items():
        default = defaults[name].default
        value = in_python(value)
        is_default = type(value) is type(default) and value == default
        if not is_default and name not in _USED.get(kind, ()):
            raise InvalidArgumentError(
                f"the prefix {kind!r} has no use for {name}=.", hint="Leave it out.", argument=name
            )


def _check_examples(retrieve: str, show: str, embed: Embed | None) -> None:
    InvalidArgumentError.check("retrieve", retrieve, get_args(Retrieve))
    InvalidArgumentError.check("show", show, get_args(Show))
    if (embed is None) == (retrieve == "embedding"):
        wrong = "needs" if embed is None else "has no use for"
        raise InvalidArgumentError(f"retrieve={retrieve!r} {wrong} embed=.")


# The words of prefixes; the texts are files in `personainfer/personas/texts`


def prefix_persona(persona: str) -> str:
    """Write the prefix that describes a user by a persona."""
    return filled("prefix_persona.txt", {"persona": persona})


def prefix_name(name: str) -> str:
    """Write the prefix that only names a user."""
    return filled("prefix_name.txt", {"name": name})


def prefix_examples(choices: Sequence[Preference], show: Show, *, similar: bool = False) -> str:
    """Write the prefix with earlier choices; "" without choices.

    Args:
        choices: the choices.
        show: which responses to show.
        similar: whether the text says that the choices are those of similar users, not of the user.
    """
    if not choices:
        return ""
    who = "users with a similar taste" if similar else "this user"
    examples = [
        filled(
            f"prefix_example_{show}.txt",
            {"prompt": choice.prompt, "preferred": choice.chosen, "other": choice.rejected},
        )
        for choice in choices
    ]
    return "\n".join([filled(f"prefix_examples_{show}.txt", {"who": who}), *examples])
