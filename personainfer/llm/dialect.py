"""`Dialect`: how requests to one endpoint have to be written.

Servers differ in what they accept: some know no JSON schema, some want `max_completion_tokens`, some refuse a
system message. A `Dialect` learns this from the first refusal and writes all later requests accordingly. Once
the endpoint has taken requests, a request that it refuses is changed alone. The change holds for all when the
endpoint has taken the changed one: a firewall that refuses the words of one row may name any field. A limit
of replies that one request is told is its own: servers name what a long prompt leaves of their context.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Protocol

from ..exceptions import RequestRejectedError
from .openai_protocol import Json, tool_call

FORMS = ("json_schema", "json_object", "tools", "text")  # tried in this order

_REASONS = re.compile(  # names of models that think before they answer
    r"(^|/)o[134](-|$)|(^|/)gpt-5(?!.*chat)|gpt-oss|deepseek-r|deepseek-reasoner|qwq|magistral"
    r"|thinking|reasoning",
    re.IGNORECASE,
)
_OPENAI_REASONS = re.compile(r"(^|/)(o[134](-|$)|gpt-5)", re.IGNORECASE)
_MISFITS = 3  # replies in another form than asked for, before any in that form
_FOR_REASONING = 8  # times max_tokens: reasoning counts as output, and takes most of it
_NUMBER = re.compile(
    r"(?:at most|maximum (?:of|is)|less than or equal to|<=|limit (?:of|is)|> |exceed|\[\d+,|between \d+ and)"
    r" ?[`'\"]?(\d+)"
)
# Changes: more than any endpoint needs, and an end for one that refuses everything.
_MOST_LEARNED = 20


class Asked(Protocol):
    """A request, which may be sent several times."""

    key: bytes  # the same each time, also where it asks for a longer reply
    trial: Dialect | None  # how it is written since it was refused; None: as all are


@dataclass
class _Limits:
    """What is known of an endpoint's limit of replies. A dialect shares it with its copies.

    Attributes:
        none: whether a request was taken with all the tokens that it asked for.
        told: (key of the request, limit) of the last one that was refused for its limit; None: none was.
        since: the version of the dialect in which a limit holds for all; 0: in none.
    """

    none: bool = False
    told: tuple[bytes, int] | None = None
    since: int = 0


class Dialect:
    """How requests to one endpoint and model have to be written, as learned from its refusals.

    The bytes of a request, and so its key in the cache, stay the same: `written` translates it when it is
    sent. Most endpoints refuse nothing and get requests unchanged.

    Args:
        model: the name, which tells whether the model reasons, and whether it is OpenAI's.
        form: the index in `FORMS` of the form in which the schema of a reply is first asked for.
    """

    def __init__(self, model: str, form: int = 0) -> None:
        self._made_of = (model, form)
        self.form = form  # in FORMS
        self.reasons = bool(_REASONS.search(model))
        self.version = 0  # counts what was learned
        self.proven = True  # requests may go side by side; False: one goes first
        self.answered = False  # whether the endpoint has ever taken a request
        self.fits = False  # whether a reply has ever been in the form that was asked for
        self._misfits = 0  # replies in another form, since the last change
        self._limit_name = "max_tokens"
        self._largest_limit: int | None = None
        self._limits = _Limits()
        self._renamed = False
        self._left_out: set[str] = set()
        self.folds_system = False  # whether a system message goes into the first one of the user
        if _OPENAI_REASONS.search(model):
            self._limit_name = "max_completion_tokens"
            if self.reasons:
                self._left_out.add("temperature")
        self._refused: RequestRejectedError | None = None
        # Before the endpoint takes a request, what is learned holds for all, unless it helps nobody.
        self._before: Dialect | None = None  # as it was before the first refusal
        self._learned_of = b""  # the request whose refusal made the last change, as a digest
        self._refused_of: set[bytes] = set()  # digests of the requests that were refused
        self._helped_nobody = False  # whether one of them was refused in every form
        self._first = asyncio.Lock()

    def renew_in_fork(self) -> None:
        """Forget, in a fork, the request of the parent process that was going first: it ends there, not here.

        Otherwise the requests of the fork would wait for it. What was learned stays.
        """
        self._first = asyncio.Lock()

    def for_a_new_run(self) -> Dialect:
        """Return this dialect; or a new one if every form was refused, as the endpoint may be mended.

        With a new one, one request goes first: nothing is known of the replies.
        """
        if self._refused is None:
            return self
        anew = Dialect(*self._made_of)
        anew.proven = False
        return anew

    @property
    def notes(self) -> Json:
        """What was learned, as JSON, for the settings of a table."""
        notes: Json = {"reply_form": FORMS[self.form]}
        if self._left_out:
            notes["left_out"] = sorted(self.left_out)
        if self.reasons:
            notes["reasons"] = True
        return notes

    @property
    def left_out(self) -> frozenset[str]:
        """Names of fields that no request has, as the endpoint does not take them."""
        return frozenset(self._left_out)

    def most_tokens(self, asked: int) -> int:
        """Return the most tokens that a reply can have if `asked` are wanted for the answer alone.

        They are more for a model that reasons first: its reasoning counts as output.
        """
        most = asked * _FOR_REASONING if self.reasons else asked
        return most if self._largest_limit is None else min(most, self._largest_limit)

    async def wait_for_turn(self) -> bool:
        """Wait while another request tries a change of the dialect.

        After a change, and after `Transport.send_one_first`, one request goes first, and the others wait for
        its outcome. At other times this returns at once.

        Returns:
            Whether this request goes first. If so, `end_turn` has to be called after it.

        Raises:
            RequestRejectedError: every form of the request has been refused.
        """
        await self._first.acquire()
        if self._refused is None and not self.proven:
            return True
        self._first.release()
        if self._refused is not None:
            raise self._refused.with_traceback(None)
        return False

    def end_turn(self) -> None:
        """Let the requests go on that wait for the first one."""
        self._first.release()

    def accepted(self, version: int, body: bytes, asked: Asked) -> None:
        """Learn that the endpoint took a request.

        If the request was changed alone, the change now holds for all, unless it lowers the limit of a reply.

        Args:
            version: the version of the dialect in which it was written.
            body: its bytes before they were translated.
            asked: the request. Its `trial` is set to None.
        """
        trial, asked.trial = asked.trial, None
        if not self._limits.none:
            had_limit = (trial or self)._largest_limit is not None
            if not had_limit or (trial is None and version < self._limits.since):
                self._forget_limit()
        if trial is not None and trial.version > self.version and self._takes(trial, body):
            self._become(trial)
        elif self._before is not None:
            if self._learned_of == _digest(body):  # the last change has helped
                self._before = None
            elif self._helped_nobody or self._before.version == version:  # taken unchanged
                self._become(self._before)
        self.proven = self.answered = True
        self._refused_of.clear()

    def _forget_limit(self) -> None:
        """Ask for as many tokens as before: the endpoint has taken a request with all that it asked for."""
        self._limits.none = True
        if self._limits.since:
            self._limits.since, self._largest_limit = 0, None
            self.version += 1

    def _is_for_others(self, limit: int, asked: Asked) -> bool:
        """Return whether a limit that a refusal names holds for others, too. If so, it does from now on.

        Two requests in a row were told the same one, and none was taken without a limit. What long prompts
        leave of a context differs.
        """
        limits = self._limits
        if limits.none or self._largest_limit is not None:
            return False
        told, limits.told = limits.told, (asked.key, limit)
        if told is None or told[0] == asked.key or told[1] != limit:
            return False
        self._largest_limit = limit
        self.version += 1
        limits.since = self.version
        return True

    def _takes(self, trial: Dialect, body: bytes) -> bool:
        """Return whether a change holds for others: it lowers no limit below what its request asks for."""
        most = trial._largest_limit
        if most is None or most == self._largest_limit:
            return True
        return bool(most >= json.loads(body).get("max_tokens", 0))

    def _become(self, other: Dialect, before: Dialect | None = None) -> None:
        # The lock stays: another one may be of the process that this one was forked from.
        vars(self).update({**vars(other), "_before": before, "_first": self._first})

    def _copy(self) -> Dialect:
        other = copy.copy(self)
        other._left_out = set(self._left_out)
        return other

    def refused(self, version: int, error: RequestRejectedError, body: bytes, asked: Asked) -> bool:
        """Learn from a refusal. Return whether the request should be sent again in another form.

        Set `error.fatal` if no form helps, and several requests were refused before any was taken.

        Args:
            version: the version of the dialect in which it was written.
            error: the refusal. Its `unsupported` names what the endpoint does not take; "": nothing is
                learned.
            body: the bytes of the request before they were translated.
            asked: the request. If the change is for this one alone, its `trial` is set.
        """
        name = error.unsupported
        field = "role" if name == "system role" else name
        trial, asked.trial = asked.trial, None
        if not name or f'"{field}":'.encode() not in body:
            return False
        if not self.answered:
            self._refused_of.add(_digest(body))
        if trial is None and version != self.version:  # the dialect has changed since it was sent
            return self._refused is None
        changed, words = (trial or self)._copy(), error.message.lower()
        before = changed._largest_limit
        if changed.version < _MOST_LEARNED and changed._learned(name, words):
            changed.version += 1
            limit = changed._largest_limit
            if limit is not None and limit != before:
                asked.trial = None if self._is_for_others(limit, asked) else changed
            elif self.answered or trial is not None:
                asked.trial = changed
            else:
                self._become(changed, before=self._before or self._copy())
                self._learned_of, self.proven = _digest(body), False
            return True
        if self.answered:
            if self._before is not None and self._learned_of == _digest(body):
                self._become(self._before)  # no change helped it
        elif self.version:  # every form was tried
            self._helped_nobody = True
            if len(self._refused_of) > 1:  # not for the words of one row: nobody needs to try again
                error.fatal = True
                self._refused = error
        return False

    def _learned(self, name: str, words: str) -> bool:
        """Change what a refusal names. Return False if it was changed before."""
        if name == "max_tokens":
            return self._learned_limit(words)
        if name == "system role":
            changed, self.folds_system = not self.folds_system, True
        elif name == "response_format":
            changed = self.form < len(FORMS) - 1
            self.form += changed
        else:
            changed = name not in self._left_out
            self._left_out.add(name)
        return changed

    def _learned_limit(self, words: str) -> bool:
        """Take a smaller limit for replies, or another name for it. Return False if both were tried."""
        most = _NUMBER.search(words)
        limit = int(most[1]) if most else 0
        if 0 < limit < (self._largest_limit or limit + 1):
            self._largest_limit = limit  # falling only: limits that rise again could go on for ever
            return True
        if self._renamed:
            return False
        self._renamed = True
        is_old = self._limit_name == "max_tokens"
        self._limit_name = "max_completion_tokens" if is_old else "max_tokens"
        return True

    def was_read(self, version: int, *, fits: bool) -> None:
        """Learn whether a reply was in the form that was asked for: some endpoints ignore it.

        If the first three replies are in another form, later requests ask in the next way of `FORMS`.

        Args:
            version: the version of the dialect in which the request was written.
            fits: whether the reply was in the form.
        """
        self.fits = fits
        self._misfits += not fits and version == self.version
        if self._misfits >= _MISFITS and self.form < len(FORMS) - 1:
            self.form += 1
            self.version += 1
            self._misfits = 0

    def thinks(self, version: int) -> bool:
        """Note that reasoning filled a reply that was cut off. Return whether replies get more tokens now.

        False: this reply had more already.
        """
        if self.reasons:
            return version < self.version
        self.reasons = True
        self.version += 1
        return True

    def written(self, body: bytes) -> bytes:
        """Return the bytes of a request in this dialect."""
        if not (self.version or self.reasons or self._limit_name != "max_tokens"):
            return body
        fields: Json = json.loads(body)
        self.write_fields(fields)
        if self.form and "response_format" in fields:
            self._ask_otherwise(fields)
        if self.folds_system:
            fold_system(fields["messages"])
        return json.dumps(fields, ensure_ascii=False).encode()

    def write_fields(self, fields: Json) -> None:
        """Change the fields of a request in place: leave some out, and set the limit of a reply.

        A model that reasons gets more tokens. The limit has the name that the endpoint knows.
        """
        if "max_tokens" in fields:
            fields[self._limit_name] = self.most_tokens(fields.pop("max_tokens"))
        for name in self._left_out:
            fields.pop(name, None)

    def _ask_otherwise(self, fields: Json) -> None:
        """Change the fields of a request in place: ask for its schema in the form that the endpoint takes."""
        asked = fields.pop("response_format")["json_schema"]
        form = FORMS[self.form]
        if form == "tools":
            fields |= tool_call(asked)
            return
        if form == "json_object":
            fields["response_format"] = {"type": "json_object"}
        schema = json.dumps(asked["schema"], ensure_ascii=False)
        words = (
            f"Reply with one JSON object and nothing else. It must fit this JSON schema:\n{schema}"
        )
        messages = fields["messages"]
        if messages[0]["role"] == "system":
            messages[0]["content"] += f"\n\n{words}"
        else:
            messages.insert(0, {"role": "system", "content": words})


def _digest(body: bytes) -> bytes:
    """Return a hash of a body, by which the request is known when the body is gone: it may be long."""
    return hashlib.sha256(body).digest()


def fold_system(messages: list[Json]) -> None:
    """Move a system message into the start of the user message after it. The list is changed in place.

    Nothing changes unless the list begins with a system message and then a user message.
    """
    if len(messages) > 1 and messages[0]["role"] == "system" and messages[1]["role"] == "user":
        system = messages.pop(0)["content"]
        messages[0]["content"] = f"{system}\n\n{messages[0]['content']}"
