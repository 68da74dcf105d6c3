"""Addresses of endpoints: can requests be sent to one, and what of it may be shown."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import unquote, urlsplit

# Of several "@" the last one ends the password: one with a "/" is then not shown either.
ADDRESS = re.compile(
    r"(?P<scheme>[^:/?#]*://|)(?P<user>.*@)?(?P<place>[^?#]*)(?:\?(?P<query>[^#]*))?(?:#(?P<fragment>.*))?",
    re.DOTALL,
)


# A part of a path that is a key: by how keys begin, or by letters of both cases and digits in a long row.
_KEY_IN_PATH = re.compile(
    r"(?:sk|pk|rk|hf|gsk|xai|AIza)[-_][\w*.-]{6,}"
    r"|.*?(?=[A-Za-z]*[0-9])(?=[0-9A-Z]*[a-z])(?=[0-9a-z]*[A-Z])[0-9A-Za-z]{20,}.*"
)
_LONGEST_PART = (
    300  # characters: no name is longer, and the search takes a time that grows with the square
)


class Address(str):
    """The address of an endpoint. Its `repr` hides what may be secret, as `shown_address` does.

    Of a text that is no address, such as a key in the wrong place, it shows nothing.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'…'" if address_problem(self) else repr(shown_address(self))


def shown_address(address: str) -> str:
    """An address without what may be secret: "…" stands for user, password and the values of its query.

    `api-version`, which Azure's addresses have, is shown. Of a part of the path that looks like a key, a
    digest is shown, so that the addresses of two keys differ.
    """
    found = ADDRESS.fullmatch(address)
    if found is None:
        return "…"
    user = "…@" if found["user"] else ""
    query = "&".join(map(_shown_field, found["query"].split("&"))) if found["query"] else ""
    fragment = "#…" if found["fragment"] else ""
    host, *parts = found["place"].split("/")
    place = "/".join([host, *(_digest(one) if is_key(one) else one for one in parts)])
    return f"{found['scheme']}{user}{place}{query and '?'}{query}{fragment}"


def is_key(part: str) -> bool:
    """Whether a part of a path looks like a key. Some gateways have it there."""
    return len(part) > _LONGEST_PART or _KEY_IN_PATH.fullmatch(part) is not None


def _digest(part: str) -> str:
    return f"…{hashlib.sha256(part.encode(errors='replace')).hexdigest()[:8]}"


def holds_secret(address: str) -> bool:
    """Whether `shown_address` hides a part of the address, or has hidden one before."""
    return shown_address(address) != address or "…" in address


def _shown_field(field: str) -> str:
    name, equals, _ = field.partition("=")
    if not equals:
        return "…"
    return field if name == "api-version" else f"{name}=…"


def address_problem(address: str) -> str:
    """Why no request can be sent to an address, without quoting it; "" if one can be sent."""
    if not address.startswith(("http://", "https://")):
        return 'It starts with "http://" or "https://".'
    if not address.isprintable() or re.search(r"[\s\\]", address):
        return "It holds a space, a backslash or a character that cannot be sent."
    try:
        parts = urlsplit(address)
        readable = bool(parts.hostname and parts.hostname.encode("idna")) and parts.port != 0
    except ValueError:  # its text may quote the password
        readable = False
    if not readable:
        return "Its host or its port cannot be read."
    if "@" in address.removeprefix(f"{parts.scheme}://{parts.netloc}"):
        return 'Write "/", "?", "#" and "@" of a password as %2F, %3F, %23 and %40; "@" of a path, too.'
    name, password = unquote(parts.username or ""), unquote(parts.password or "")
    if ":" in name or max(map(ord, name + password), default=0) > 0xFF:
        return "Its user or its password has a character that cannot be sent."
    return ""
