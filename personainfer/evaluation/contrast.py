"""Cut from a persona's text what the person does not want: "stories rather than statistics" → "stories"."""

from __future__ import annotations

import re

__all__ = ["without_contrast"]

# "over" compares only between two things: not in "over time", "over 50", "control over", "talk over".
_OVER = (
    r"(?<!\ball )(?<!\bcontrol )(?<!\bpower )(?<!\bauthority )(?<!\badvantage )(?<!\btalk )(?<!\bgo )"
    r"(?<!\blook )(?<!\bmull )(?<!\bthink )(?<!\bworry )(?<!\bstart )(?<!\btake )(?<!\bover and )"
    r"over(?![\w-])(?!\s+(?:\d|and over|again|time\b|years?\b|decades\b|dinner\b|lunch\b|coffee\b|drinks\b"
    r"|the (?:phone|years|long|course|next|past|last|internet|top|holidays|weekend|summer)\b"
    r"|(?:a|several|many|long|the) (?:\w+ )?(?:periods?|years|days|weeks|months|hours|distances?|meal|coffee)\b))"
)
_NOT = (
    r"(?:(?:do|does|is|are|would)n['\u2019]t|(?:(?:do|does|is|are|would|but|and) )?not)"
    r"(?![\w-])(?!\s+(?:only|just|merely|simply|necessarily)\b)"
)
_CONTRAST = (
    r"(?:rather than|instead of|in place of|as opposed to|in preference to|versus|vs\.?|without|"
    rf"{_OVER}|{_NOT})"
)
# A clause ends at a mark, at "but", or where another verb or reason begins.
_END = (
    r"(?=[,;:.!?()\u2014]|\s(?:but|because|so that|so they|when|while|if|since|as they)\b"
    r"|\sand (?:is|are|has|who|also|likes|loves|wants|needs|values|enjoys|seeks|prefers|appreciates)\b|$)"
)
_CLAUSE = re.compile(rf"\b{_CONTRAST}(?!\w)(?:(?!{_END}).)*", re.IGNORECASE | re.DOTALL)


def without_contrast(text: str) -> str:
    """The text without clauses of contrast or negation, from their first word to the clause's end.

    After "Whose Boat Does it Float?" (arXiv 2501.11549), which cuts them before it counts words. "not only
    X but also Y" stays whole, and so do "overly" and "over time".
    """
    return _CLAUSE.sub(" ", text)
