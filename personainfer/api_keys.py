"""Keep API keys, and the secrets in addresses, out of messages, files and fingerprints.

`hide_secrets` makes a key a `SecretText` and an address an `Address` from the moment it comes in. An ordinary
pickle keeps the key, for a worker process. The pickles that Hugging Face's datasets makes to fingerprint a
function leave it out: a renewed key would otherwise discard everything that was mapped before.
"""

from __future__ import annotations

import base64
import hashlib
import html
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache, lru_cache, wraps
from typing import Any, TypeVar
from urllib.parse import unquote, unquote_plus, urlsplit

from .exceptions import AuthenticationError

Function = TypeVar("Function", bound=Callable[..., Any])

# Of several "@" the last one ends the password: one with a "/" is then not shown either. It matches every
# text, since each part may be empty, and the rest of a text without "?" and "#" is its place.
_ADDRESS = re.compile(
    r"(?P<scheme>[^:/?#]*://|)(?P<user>.*@)?(?P<place>[^?#]*)(?:\?(?P<query>[^#]*))?(?:#(?P<fragment>.*))?",
    re.DOTALL,
)


# A part of a path that is a key: by how keys begin, or by letters of both cases and digits in a long row.
KEY_START = re.compile(r"(?:sk|pk|rk|hf|gsk|xai|AIza)[-_][\w*.-]{6,}")
_KEY_IN_PATH = re.compile(
    KEY_START.pattern
    + r"|.*?(?=[A-Za-z]*[0-9])(?=[0-9A-Z]*[a-z])(?=[0-9a-z]*[A-Z])[0-9A-Za-z]{20,}.*"
)
# Characters: no name is longer, and the search takes a time that grows with the square.
_LONGEST_PART = 300

_SHORTEST_SECRET = 4  # characters; without shorter ones a text would be hard to read
_SHORTEST_ENCODED = 8  # shorter ones are masked as whole words of their own case, and not encoded
_SCHEMES = frozenset(  # of authentication, which a header names before the secret
    "bearer basic token key apikey api-key digest oauth jwt ssws negotiate ntlm hawk hmac splunk"
    " genie geniekey aws4-hmac-sha256".split()
)
# Headers and fields of queries that are secret.
SECRET_NAME = re.compile(
    r"auth|key|token|secret|cookie|signature|pass|pwd|\bpin\b|access|credential|session|jwt",
    re.IGNORECASE,
)
_KEY_FIELDS = frozenset(("code", "sig"))  # of Azure's addresses, which are secret, too
# Words in the names of headers by which gateways choose a model.
_ROUTE_NAME = re.compile(
    "rout(e|ing)|provider|model|deployment|tenant|backend|upstream|target|host|destination|endpoint"
    "|engine|adapter|lora|variant|fallback|config|virtual|llm",
    re.IGNORECASE,
)
_LONGEST_USER = 8  # characters of a user's name that may be shown; a longer one may be a token


# Addresses


class Address(str):
    """The address of an endpoint. Its `repr` hides what may be secret, as `shown_address` does.

    The `repr` of a text that is no address, such as a key in the wrong place, is "…".
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'…'" if address_problem(self) else repr(shown_address(self))


def shown_address(address: str) -> str:
    """Return an address without what may be secret.

    "…" stands for the user and password, for each value of the query, and for the fragment. `api-version`,
    which Azure's addresses have, is shown. A part of the path that looks like a key becomes a digest of it,
    so that the addresses of two keys differ.
    """
    found = _parts(address)
    user = "…@" if found["user"] else ""
    query = "&".join(map(_shown_field, found["query"].split("&"))) if found["query"] else ""
    fragment = "#…" if found["fragment"] else ""
    host, *parts = found["place"].split("/")
    place = "/".join([host, *(_digest(one) if is_key(one) else one for one in parts)])
    return f"{found['scheme']}{user}{place}{query and '?'}{query}{fragment}"


def _parts(address: str) -> dict[str, str]:
    """Split any text as an address.

    Returns:
        Name -> part of the text, "" for one that is missing. "scheme" ends with "://". "user" is all after it
        up to the last "@", this included, wherever that stands. "place" is host, port and path. "query" and
        "fragment" come without "?" and "#".
    """
    found = _ADDRESS.fullmatch(address)
    assert found is not None
    return found.groupdict("")


def is_key(part: str) -> bool:
    """Whether a part of an address's path looks like a key. Some gateways have keys there."""
    return len(part) > _LONGEST_PART or _KEY_IN_PATH.fullmatch(part) is not None


def _digest(part: str) -> str:
    return f"…{hashlib.sha256(part.encode(errors='replace')).hexdigest()[:8]}"


def holds_secret(address: str) -> bool:
    """Whether `shown_address` masks a part of the address, or has masked one before: it then has a "…"."""
    return shown_address(address) != address or "…" in address


def _shown_field(field: str) -> str:
    name, equals, _ = field.partition("=")
    return field if _is_shown(field) else f"{name}=…" if equals else "…"


def route_of(
    addresses: Iterable[str],
    headers: Mapping[str, str],
    places: Iterable[tuple[str, str]] = (),
) -> str:
    """Return a digest of what chooses a model, but is hidden by `shown_address`; "" if there is none.

    Fields of queries count, and headers with names such as `x-portkey-provider`. Keys, passwords and other
    headers, such as the number of a trace, do not count: cached replies are found again with another key.

    Args:
        addresses: the addresses that a call may go to.
        headers: name -> value of the added headers.
        places: what else decides where a call goes, with its name, such as a region.
    """
    fields = [
        field
        for address in addresses
        if (query := _parts(address)["query"])
        for field in query.split("&")
        if not _is_shown(field) and not _is_key_field(field)
    ]
    named = sorted(
        (name.lower(), str(value)) for name, value in headers.items() if _chooses_a_model(name)
    )
    all_of_them = [*([fields, named] if fields or named else []), *places]
    chosen = json.dumps(all_of_them).encode() if all_of_them else b""
    return hashlib.sha256(chosen).hexdigest() if chosen else ""


def _chooses_a_model(header: str) -> bool:
    """Whether a header's name says that its value chooses a model, and is no key.

    `x-portkey-virtual-key` chooses one, though its name ends in "key"; `x-provider-api-key` is a key.
    """
    is_key_name = (
        SECRET_NAME.search(re.split("[-_]", header)[-1]) and "virtual" not in header.lower()
    )
    return bool(_ROUTE_NAME.search(header)) and not is_key_name


def _is_shown(field: str) -> bool:
    """Whether a field of a query may be shown whole: `api-version`, which Azure's addresses have."""
    return field.startswith("api-version=")


def _is_key_field(field: str) -> bool:
    name, _, value = field.partition("=")
    is_named = SECRET_NAME.search(name) or name in _KEY_FIELDS
    return bool(is_named or (KEY_START.match(value) if value else is_key(name)))


def address_problem(address: str) -> str:
    """Say why no request can be sent to an address, without quoting it; "" if one can be sent."""
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


# Keys


class HiddenKey:
    """Holds the key among the options of a model that are about to be pickled. Its `repr` shows no key.

    It also holds a value of a wrong type in the place of a secret text.
    """

    __slots__ = ("key",)

    def __init__(self, key: object = None) -> None:
        self.key = key

    def __repr__(self) -> str:
        return "HiddenKey(…)"


def hide_key(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the options of a model for a pickle, with the key in a `HiddenKey`.

    The fingerprints of Hugging Face's datasets leave the key out then; an ordinary pickle keeps it. Options
    without `api_key` are copied as they are.
    """
    if not options.get("api_key"):
        return dict(options)
    if "datasets" in sys.modules:
        _leave_out_of_fingerprints()
    return {**options, "api_key": HiddenKey(options["api_key"])}


def show_key(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the options that `hide_key` returned, with the key itself."""
    key = options.get("api_key")
    return {**options, "api_key": key.key} if isinstance(key, HiddenKey) else dict(options)


def _leave_out_of_fingerprints() -> None:
    # Only datasets' fingerprints use this pickler. If a later version has another one, a changed key
    # discards what was mapped before, and nothing else happens.
    with suppress(ImportError, AttributeError):
        from datasets.utils._dill import pklregister

        pklregister(HiddenKey)(_save_without_key)


def _save_without_key(pickler: Any, key: HiddenKey) -> None:
    pickler.save_reduce(HiddenKey, (), obj=key)


_OPENAI_HOST = "api.openai.com"
# Hosts of Azure's model services. Other names below azure.com can be anybody's, such as a virtual machine's.
_OPENAI_ON_AZURE = (".openai.azure.com", ".cognitiveservices.azure.com")
_AZURE_HOSTS = (*_OPENAI_ON_AZURE, ".services.ai.azure.com", ".models.ai.azure.com")


def environment_key(endpoint: str) -> str:
    """Return the environment's key for an endpoint of OpenAI or Azure.

    Args:
        endpoint: the address. For another host, and for an address that does not begin with https, no key is
            returned: it must not be sent there.

    Returns:
        The value of OPENAI_API_KEY, or of AZURE_OPENAI_API_KEY or AZURE_API_KEY; "" if there is none.

    Raises:
        AuthenticationError: the key cannot be sent over HTTP.
    """
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    if parts.scheme != "https":
        return ""
    names: tuple[str, ...] = ()
    if host == _OPENAI_HOST:
        names = ("OPENAI_API_KEY",)
    elif host.endswith(_AZURE_HOSTS):
        names = ("AZURE_OPENAI_API_KEY", "AZURE_API_KEY")
    name = next((name for name in names if os.environ.get(name)), "")
    key = SecretText(os.environ.get(name, ""))
    if not can_be_sent(key):
        raise AuthenticationError(
            f"the key in {name} cannot be sent.",
            hint="A key is ASCII text without white space around it.",
        )
    return key


def is_openai(endpoint: str) -> bool:
    """Return whether OpenAI's own models answer at an address: at OpenAI, or at its service on Azure."""
    try:
        host = urlsplit(endpoint).hostname or ""
    except ValueError:  # one of the environment, to which no call will succeed
        return False
    return host == _OPENAI_HOST or host.endswith(_OPENAI_ON_AZURE)


def openai_headers() -> dict[str, str]:
    """Return the headers that the openai SDK takes from the environment, by name; "" for one that is not set.

    They are meant for OpenAI: no other endpoint may see them.
    """
    lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
    found = {name.strip(): text.strip() for name, colon, text in map(_halves, lines) if colon}
    organizations = (os.environ.get(name) for name in ("OPENAI_ORGANIZATION", "OPENAI_ORG_ID"))
    found["OpenAI-Organization"] = next(
        filter(None, organizations), ""
    )  # litellm's name comes first
    found["OpenAI-Project"] = os.environ.get("OPENAI_PROJECT_ID", "")
    return found


def _halves(line: str) -> tuple[str, str, str]:
    return line.partition(":")


def key_headers(endpoint: str, key: str) -> dict[str, str]:
    """Return the header that carries a key to an endpoint, by name; {} for the key "".

    Azure's endpoints take it as `api-key`, all others as `Authorization`.
    """
    if not key:
        return {}
    if _is_azure(endpoint):
        return {"api-key": SecretText(key)}
    return {"Authorization": SecretText(f"Bearer {key}")}


def _is_azure(endpoint: str) -> bool:
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    return (
        "/openai/deployments/" in f"{parts.path}/"
        or "api-version=" in parts.query
        or host.endswith(_OPENAI_ON_AZURE)
    )


class SecretText(str):
    """A key, or the value of a header that holds one. Its `repr`, as in errors and debuggers, is "…".

    `str(key)` and `f"{key}"` give the text itself.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'…'"


def hide_secrets(options: dict[str, Any]) -> None:
    """Replace addresses, keys and headers among options, in place, by values whose `repr` shows no secret.

    Texts of options with similar names count, too, since a name may be misspelt. A value of a wrong type
    becomes a `HiddenKey`, and is refused where the options are checked.
    """
    for name, value in options.items():
        if name == "api_base" and isinstance(value, str):
            options[name] = Address(value)
        elif "header" in name and isinstance(value, Mapping):
            options[name] = {header: _hidden(text) for header, text in value.items()}
        elif "header" in name and isinstance(value, list):  # NAME=VALUE, of the command
            options[name] = [_hidden(text) for text in value]
        elif name in _SECRET_OPTIONS or (isinstance(value, str) and SECRET_NAME.search(name)):
            options[name] = _hidden(value)


_SECRET_OPTIONS = ("api_base", "api_key", "extra_headers")


def _hidden(value: object) -> object:
    if value is None:
        return None
    return SecretText(value) if isinstance(value, str) else HiddenKey(value)


def hides_secrets(function: Function) -> Function:
    """Decorate a function, so that no traceback shows the secrets among its keyword arguments.

    These are `api_base`, `api_key`, `extra_headers`, and options with similar names. Programs that report
    errors show the variables of each call. The function gets the values that `hide_secrets` makes of them. Of
    a class, the constructor is decorated.
    """
    if isinstance(function, type):
        made: Any = function
        made.__init__ = hides_secrets(made.__init__)
        return made  # type: ignore[no-any-return]
    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def called_later(*arguments: Any, **options: Any) -> Any:
            hide_secrets(options)
            return await function(*arguments, **options)

        return called_later  # type: ignore[return-value]

    @wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        hide_secrets(options)
        return function(*arguments, **options)

    return called  # type: ignore[return-value]


def can_be_sent(text: str) -> bool:
    """Whether every HTTP client that is used here can send a text as the value of a header."""
    return text.isascii() and text.isprintable() and text.strip() == text


class Stored:
    """Marks a value that comes from a file, and not from the caller.

    Otherwise, whoever wrote the file would choose where the user's key and data go, and what calls cost.
    """

    __slots__ = ()


class StoredText(Stored, str):
    """A text that comes from a file, such as an address."""

    __slots__ = ()


class StoredNumber(Stored, int):
    """A whole number that comes from a file."""

    __slots__ = ()


class StoredFields(Stored, dict[str, Any]):
    """A dict that comes from a file, such as further fields of requests."""


_STORED: dict[type, type] = {str: StoredText, int: StoredNumber, dict: StoredFields}


def as_stored(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that a file holds, with each text, whole number and dict marked as `Stored`.

    Values of other types, and those within a dict, stay as they are.
    """
    return {
        name: _STORED.get(type(value), lambda value: value)(value)
        for name, value in settings.items()
    }


class Secrets:
    """What no text may show of a connection: its keys, the values of its headers, what its address hides.

    Texts of fewer than 4 characters are not masked.

    Args:
        texts: keys, and values of headers whose names are not known. Of `Basic dXNlcjpwdw==`, the last word
            and the password are secrets, too.
        headers: name -> value of the added headers. If a name is like that of a secret, each word of the
            value is a secret, too. None: there are none.
        addresses: addresses that may hold a password, a token in the query, or a fragment.
    """

    def __init__(
        self,
        texts: Iterable[str] = (),
        *,
        headers: Mapping[str, str] | None = None,
        addresses: Iterable[str] = (),
    ) -> None:
        self._texts = tuple(texts)
        self._headers = headers or {}
        self._addresses = tuple(addresses)

    def __repr__(self) -> str:
        return "Secrets(…)"

    def with_texts(self, texts: Iterable[str]) -> Secrets:
        """Return these secrets and some more, as `texts` of the constructor. This object stays as it is."""
        return Secrets((*self._texts, *texts), headers=self._headers, addresses=self._addresses)

    def mask(self, text: str) -> str:
        """Return the text with "[key]" in place of each secret, however the secret is escaped."""
        return self._search(in_replies=False).mask(text)

    def mask_reply(self, text: str) -> str:
        """Return a text of a model, or an id, with "[key]" in place of secrets that no chance puts there.

        Such a secret has 16 characters or more, with letters and digits among them, and no blank or colon. A
        shorter one, or the title in a header, may be an ordinary word of the text.
        """
        return self._search(in_replies=True).mask(text)

    def _search(self, *, in_replies: bool) -> _Search:
        # litellm's transport makes its secrets anew for each reply. To compile a pattern takes a millisecond.
        headers = tuple(self._headers.items())
        return _search_for(self._texts, headers, self._addresses, in_replies=in_replies)


class _Search:
    """Finds secrets in texts."""

    def __init__(self, secrets: Iterable[str]) -> None:
        found = {form for secret in secrets for form in _forms(secret)}
        longest_first = sorted(found, key=len, reverse=True)  # one secret may begin another
        self._pattern = re.compile("|".join(map(_in_any_escape, longest_first)))
        # Most texts hold none of these, which is seen in a thousandth of the time of a search.
        self._words = tuple(
            {max(re.findall("[0-9A-Za-z]*", form), key=len).casefold() for form in found}
        )

    def mask(self, text: str) -> str:
        """Return the text with "[key]" in place of each secret, also where its letters are escaped."""
        if not self._words:  # there are no secrets
            return text
        masked = self._masked(text)
        if _ESCAPE_SIGN.search(text):
            plain = _without_escapes(text)
            found = masked if plain == text else self._masked(plain)
            # Whether more is masked. Most replies with a sign of an escape hold no secret at all.
            if "[key]" in found and _left(found) < _left(_without_escapes(masked)):
                return found
        return masked

    def _masked(self, text: str) -> str:
        folded = text.casefold()
        for word in self._words:
            if word in folded:
                return self._pattern.sub("[key]", text)
        return text


@lru_cache(maxsize=128)
def _search_for(
    texts: tuple[str, ...],
    headers: tuple[tuple[str, str], ...],
    addresses: tuple[str, ...],
    *,
    in_replies: bool,
) -> _Search:
    secrets = {secret for text in texts for secret in _in_header(text)}
    for name, text in headers:
        secrets.update(_in_header(text), _in_secret_header(name, text))
    secrets.update(secret for address in addresses for secret in _in_address(address))
    return _Search(filter(_UNMISTAKABLE.fullmatch, secrets) if in_replies else secrets)


# A key. With a colon or a blank in it, it could be an address or a title; its parts are looked for anyway.
_UNMISTAKABLE = re.compile(r"(?=[^:\s]{16})(?=.*[0-9])(?=.*[A-Za-z])[^:\s]*")


def _forms(secret: str) -> Iterator[str]:
    """Yield a secret as it is, decoded from URL encoding, and encoded as a whole (base64, hex).

    Only secrets of 8 characters or more are encoded. Forms of fewer than 4 characters are left out.
    `_in_any_escape` finds more forms of each.
    """
    forms = [secret, unquote(secret), unquote_plus(secret), " ".join(secret.split())]
    if len(secret) >= _SHORTEST_ENCODED:
        content = secret.encode(errors="replace")
        forms += [content.hex(), *_in_base64(content)]
    yield from (form for form in forms if len(form) >= _SHORTEST_SECRET)


def _in_base64(content: bytes) -> Iterator[str]:
    """Yield the code of a secret alone, and what of it does not change within a text ("Bearer SECRET").

    Three bytes are four signs, so the code within a text depends on how many bytes stand before it.
    """
    for before in range(3):
        code = base64.b64encode(bytes(before) + content).decode().rstrip("=")
        code = code[before + 1 if before else 0 :]
        for form in (code, code[:-1]):  # the last sign may also hold bits of what follows
            yield from (form, form.translate(_OF_ADDRESSES))


_OF_ADDRESSES = str.maketrans("+/", "-_")  # base64's signs in an address


# A letter, a digit or a sign of an escape, escaped for JSON, an address or HTML, in a text within a text too.
# Servers escape those without need: `json.dumps` and `quote` do not.
_ESCAPE_SIGN = re.compile(r"\\u00|\\x|[%&]")
# Each form begins with a sign that no case changes: `re` skips to the next one of these.
_ESCAPED_LETTER = re.compile(
    r"\\(?<!\\\\)\\*+(?:u00|x)([0-9a-f]{2})|%(?:25){0,4}([0-9a-f]{2})|&(?:amp;){0,4}#(?:0{0,6}([0-9]{2,3})"
    r"|x0{0,6}([0-9a-f]{2}));",
    re.IGNORECASE,
)
_MOST_NESTED = 3  # escapes of escapes


def _left(masked: str) -> int:
    """Count the characters of a text that are not masked."""
    return len(masked.replace("[key]", ""))


def _without_escapes(text: str) -> str:
    for _ in range(_MOST_NESTED):
        before, text = text, _ESCAPED_LETTER.sub(_unescaped, text)
        if text == before:
            break
    return text


def _unescaped(found: re.Match[str]) -> str:
    """Return what an escape stands for if it is a letter, a digit or a sign of an escape; else the escape."""
    json_code, percent, decimal, html_code = found.groups()
    code = int(decimal) if decimal else int(json_code or percent or html_code, 16)
    char = chr(code)
    return char if char.isascii() and (char.isalnum() or char in "%&#;\\") else found[0]


def _in_any_escape(text: str) -> str:
    """Make a pattern of a text as servers repeat it: in any case, and escaped for JSON, an address or HTML.

    A text of fewer than 8 characters is found only as a whole word in its own case. Each text matches in one
    way, so that the time of a search grows with its length.
    """
    parts = re.findall(r"\\+|.", text, re.DOTALL)
    pattern = "".join(
        part if part.isalnum() and part.isascii() else _escaped(part[0], len(part))
        for part in parts
    )
    if len(text) >= _SHORTEST_ENCODED:
        return f"(?i:{pattern})"
    begins = "(?<![0-9A-Za-z])" if text[0].isalnum() else ""
    ends = "(?![0-9A-Za-z])" if text[-1].isalnum() else ""
    return f"{begins}{pattern}{ends}"


@cache
def _escaped(char: str, count: int) -> str:
    """Make a pattern of `count` equal characters in each of their escapes; `char` is no letter or digit.

    Only of backslashes is `count` above 1. A text within a text has more backslashes each time: those before
    an escape count as part of it.
    """
    percents = "".join(f"%(?:25){{0,4}}{byte:02x}" for byte in char.encode(errors="replace"))
    numbers = (rf"&#0{{0,6}}{ord(char)};", rf"&#x0{{0,6}}{ord(char):x};")
    if char == "\\":
        return rf"(?i:\\(?:u005c)?|{'|'.join((percents, *numbers))}){{{count},{8 * count}}}+"
    in_json = (
        re.escape(json.dumps(char)[1:-1].lstrip("\\")),
        r"\\{0,8}".join(f"u{unit}" for unit in _utf16(char)),
    )
    # What begins with the character itself comes before it: of "%25" nothing stays.
    forms = [percents, *numbers, re.escape(html.escape(char)), *in_json, re.escape(char)]
    forms += [r"\+"] if char == " " else []
    return rf"\\{{0,8}}+(?i:{'|'.join(dict.fromkeys(forms))})"


def _utf16(char: str) -> list[str]:
    """Return the UTF-16 units of a character in hex, as JSON escapes it: ["003d"]."""
    content = char.encode("utf-16-be", "surrogatepass")
    return [content[start : start + 2].hex() for start in range(0, len(content), 2)]


def _in_header(text: str) -> Iterator[str]:
    """Yield the secrets in the value of a header.

    These are the value, what follows the name of a scheme in it ("Bearer …"), what Basic authentication
    encodes, and parts that are long enough, as in a cookie ("token=SECRET; theme=dark"). Other words may be
    those of a title.
    """
    yield text
    kind, _, word = text.strip().rpartition(" ")
    if kind.lower() in _SCHEMES:
        yield word
    for equals, part in re.findall(r'(=?)"?([^\s;,="]+)', text):
        if len(part) >= _SHORTEST_ENCODED and (equals or re.search("[0-9]", part)):
            yield part
    if kind.lower() == "basic":
        with suppress(ValueError):
            yield from _in_user(base64.b64decode(word).decode())


def _in_secret_header(name: str, text: str) -> Iterator[str]:
    """Yield the words of a header whose name is like a secret's, without names of fields and schemes."""
    if not SECRET_NAME.search(name):
        return
    for word in re.split(r'[\s;,"]+', re.sub(r'[\w-]+=(?=["\w])', " ", text)):
        if word.rstrip(":").lower() not in _SCHEMES:
            yield word
            yield from re.split("[:=]", word)


def _in_address(address: str) -> Iterator[str]:
    """Yield what `shown_address` hides of an address, and the header that user and password become."""
    found = _parts(address)
    if user := found["user"][:-1]:
        yield from _in_user(user)
        yield from _in_user(unquote(user))
    yield from filter(is_key, found["place"].split("/")[1:])
    for field in found["query"].split("&"):
        name, equals, value = field.partition("=")
        if name != "api-version":
            yield value if equals else name
    yield found["fragment"]


def _in_user(user: str) -> Iterator[str]:
    """Yield the secrets of "user:password". Beside a password, a short name of a user is no secret."""
    name, _, password = user.partition(":")
    whole = f"{name}:{password}"
    yield whole
    yield password
    if len(name) > _LONGEST_USER or len(password) < _SHORTEST_SECRET:
        yield name
    for encoding in ("utf-8", "latin-1"):
        yield base64.b64encode(whole.encode(encoding, "replace")).decode()
