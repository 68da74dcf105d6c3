"""A world in which it is known what personas know: users, their choices, and a scorer that reads personas.

Every response has a topic, a tone and a length. Each user has a favourite topic; all prefer a kind tone; and
longer responses are preferred a little.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

import personainfer as pi
from personainfer.records import FloatArray, Message
from personainfer.users import UserPersona
from personainfer.users.records import PairEvidence

Kind = Literal["knows", "people in general", "longer", "own length", "nothing"]

TOPICS = ("cats", "ships", "maths", "songs")


def response(topic: str, kind: bool, words: int, number: int) -> str:
    """A response that says what it is."""
    tone = "kindly" if kind else "bluntly"
    return f"{number}: {tone} about {topic}." + " more" * words


class World:
    """Users with tastes, and the choices that they make.

    Args:
        seed: of everything that is drawn.
        users: how many.
        choices: how many each makes.
        longer: how much everybody prefers the longer response, for one word more.
        own_length: how much each user prefers the longer or the shorter one.
    """

    def __init__(
        self,
        seed: int,
        users: int = 60,
        choices: int = 40,
        longer: float = 0.0,
        own_length: float = 0.0,
    ) -> None:
        self.random = np.random.default_rng(seed)
        self.users = [f"u{n}" for n in range(users)]
        self.topic = {user: str(self.random.choice(TOPICS)) for user in self.users}
        self.sign = {user: int(self.random.choice([-1, 1])) for user in self.users}
        self.longer, self.own_length = longer, own_length
        self.choices = [self._choice(user, n) for user in self.users for n in range(choices)]

    def _choice(self, user: str, number: int) -> pi.Preference:
        random = self.random
        topics = random.choice(TOPICS, size=2, replace=False)
        kind = random.permutation([True, False]) if random.random() < 0.5 else [True, True]
        words = random.integers(1, 9, size=2)
        one, other = (
            response(str(topics[n]), bool(kind[n]), int(words[n]), 2 * number + n) for n in range(2)
        )
        liking = 2.0 * ((topics[0] == self.topic[user]) - float(topics[1] == self.topic[user]))
        liking += 1.5 * (float(kind[0]) - float(kind[1]))
        more = self.longer + self.own_length * self.sign[user]
        liking += more * float(words[0] - words[1])
        first = random.random() < 1 / (1 + np.exp(-liking))
        chosen, rejected = (one, other) if first else (other, one)
        return pi.Preference(
            prompt=f"What is new, {number}?", chosen=chosen, rejected=rejected, user=user
        )

    def personas(self, kind: Kind) -> dict[str, str]:
        """Personas of which it is known what they know; each has words of its own."""
        said: dict[str, Callable[[str], str]] = {
            "knows": lambda user: f"The user likes to read about {self.topic[user]}.",
            "people in general": lambda user: "The user likes it when others speak kindly.",
            "longer": lambda user: "The user likes long responses.",
            "own length": lambda user: (
                f"The user likes {'long' if self.sign[user] > 0 else 'short'} responses."
            ),
            "nothing": lambda user: "The user is a person.",
        }
        return {user: f"{said[kind](user)} Name: {user}." for user in self.users}

    def personas_with_evidence(
        self, number: int
    ) -> tuple[dict[str, UserPersona], list[pi.Preference]]:
        """Personas made from the choice of this number of each user, and all choices with their ids."""
        each = len(self.choices) // len(self.users)
        personas = {
            user: UserPersona(
                user=user,
                background=text,
                preferences=text,
                pairs=1,
                evidence=(PairEvidence(pair=f"{user}-{number}", shows="…"),),
            )
            for user, text in self.personas("knows").items()
        }
        choices = [
            choice.model_copy(update={"id": f"{choice.user}-{n % each}"})
            for n, choice in enumerate(self.choices)
        ]
        return personas, choices


def read(conversations: Sequence[Sequence[Message]], responses: Sequence[str]) -> FloatArray:
    """The scorer: what the persona likes, and noise that the persona's words decide."""
    scores = []
    for turns, text in zip(conversations, responses, strict=True):
        persona = turns[0].content if len(turns) > 1 else ""
        score = sum(topic in persona and topic in text for topic in TOPICS) * 2.0
        score += 1.5 * ("kindly" in persona and "kindly" in text)
        score += 0.1 * len(text) * (("long" in persona) - ("short" in persona))
        # A checksum's bits would depend on each other across users.
        drawn = hashlib.blake2b(f"{persona}|{text}".encode(), digest_size=4).digest()
        noise = int.from_bytes(drawn, "big") / 2**32 - 0.5
        scores.append(score + noise * (not ("long" in persona or "short" in persona)))
    return np.array(scores)
