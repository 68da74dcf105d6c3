"""Endpoints repeat what they were sent: no error, setting or saved table may hold a secret of it."""

from __future__ import annotations

import base64
import html
import json
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

import personainfer as pi
from personainfer.api_keys import Secrets, shown_address
from personainfer.exceptions import ModelError
from personainfer.llm.requests import Request
from personainfer.records import Message
from personainfer.testing import FakeLLM, Fault

from ..builders import AnyServer, each_way, everything, examples, pairs

KEY = "a1b2c3d4e5f60718293a4b5c6d7e8f90"  # nothing in its form says that it is a key
PASSWORD = "p4ss/wörd"
BASIC = [
    base64.b64encode(f"user:{PASSWORD}".encode(code)).decode() for code in ("utf-8", "latin-1")
]

echoes = pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://{place}/v1?token=q7Token%2FOfQuery", ["q7Token%2FOfQuery", "q7Token/OfQuery"]),
        ("http://{place}/v1?q7TokenAlone", ["q7TokenAlone"]),
        ("http://{place}/v1#q7Fragment", ["q7Fragment"]),
        (f"http://user:{quote(PASSWORD, '')}@{{place}}/v1", [PASSWORD, quote(PASSWORD, ""), *BASIC]),
        ("http://q7user@{place}/v1", ["q7user", base64.b64encode(b"q7user:").decode()]),
    ],
)  # fmt: skip


@each_way
@echoes
def test_no_table_holds_a_secret_of_the_address_that_the_endpoint_repeats(
    address: str, said: list[str], tmp_path: Path
) -> None:
    """A normal 404 repeats the path."""
    words = f"content filter: Cannot POST /v1/chat/completions, {' and '.join(said)}"
    with AnyServer(422, body=words.encode()) as server:
        base = address.format(place=server.address.removeprefix("http://"))
        llm = pi.LLM("m", api_base=base, cache=False, max_attempts=1)
        table = pi.infer_personas(pairs(1), llm)
        with pytest.raises(ModelError) as caught:
            pi.Likelihood("m", api_base=base).log_likelihood(["a"], [None], ["b"])
    table.save(tmp_path / "t.parquet")
    told = f"{table[0].error} {caught.value}"
    assert "Cannot POST /v1/chat/completions" in told
    stored = (tmp_path / "t.parquet").read_bytes()
    for secret in said:
        assert secret not in told
        assert secret.encode() not in stored


def completion(**message: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **message}}
    return {"id": "1", "object": "chat.completion", "model": KEY, "choices": [choice]}


@each_way
def test_the_endpoints_name_of_the_model_shows_no_key(tmp_path: Path) -> None:
    body = completion(content='{"person_1": 1}')
    with AnyServer(body=json.dumps(body).encode()) as server:
        llm = pi.LLM("m", api_base=server.address, api_key=KEY, cache=False, max_attempts=1)
        table = pi.infer_personas(pairs(1), llm)
    table.save(tmp_path / "t.parquet")
    assert table.settings["answered_as"] == ["[key]"]
    assert KEY.encode() not in (tmp_path / "t.parquet").read_bytes()


@each_way
@pytest.mark.parametrize(
    "fault",
    [
        Fault("edit", edit={"content": None, "refusal": f"{'no ' * 60}{KEY}"}),  # is cut within the key
        Fault("edit", edit={"content": None, "finish_reason": f"content_filter {KEY}"}),
    ],
    ids=["refusal", "finish_reason"],
)  # fmt: skip
def test_what_an_error_quotes_of_a_reply_shows_no_key(fault: Fault) -> None:
    with FakeLLM(reply=fault) as server:
        llm = pi.LLM("m", api_base=server.api_base, api_key=KEY, cache=False, max_attempts=1)
        with pytest.raises(ModelError, match=r"refused|content filter") as caught:
            llm.ask([{"role": "user", "content": "Hello"}])
    assert KEY[:8] not in str(caught.value)


class Names(BaseModel):
    model_config = ConfigDict(extra="forbid")

    ages: dict[str, int]


@each_way
def test_names_of_fields_in_an_error_show_no_key() -> None:
    body = completion(content=json.dumps({"ages": {"q7-header": "x"}, "q7-header": 1}))
    with AnyServer(body=json.dumps(body).encode()) as server:
        headers = {"X-Mine": "q7-header"}
        llm = pi.LLM(
            "m", api_base=server.address, extra_headers=headers, cache=False, max_attempts=1
        )
        with pytest.raises(ModelError, match=r"\[key\]") as caught:
            llm.ask([{"role": "user", "content": "Hello"}], Names)
    assert "q7-header" not in str(caught.value)


@each_way
def test_no_reply_that_repeats_a_key_is_told_or_stored(tmp_path: Path) -> None:
    body = completion(content=f"the key is {KEY}, by Bob-the-great")
    with AnyServer(body=json.dumps(body).encode()) as server:
        options: dict[str, Any] = {
            "api_base": server.address,
            "api_key": KEY,
            "cache_dir": tmp_path,
        }
        llm = pi.LLM("m", extra_headers={"X-Title": "Bob-the-great"}, **options)
        said = llm.ask([{"role": "user", "content": "Hello"}]).text
    assert said == "the key is [key], by Bob-the-great"  # a title may be a word of the reply
    assert KEY.encode() not in everything(tmp_path)


def test_no_token_that_repeats_a_key_is_told_or_stored(tmp_path: Path) -> None:
    """Such as an alternative, which the text does not show."""
    near = [{"token": KEY, "logprob": -2.0}]
    body = completion(content="Yes")
    token = {"token": "Yes", "logprob": -1.0, "top_logprobs": near}
    body["choices"][0]["logprobs"] = {"content": [token]}
    with AnyServer(body=json.dumps(body).encode()) as server:
        llm = pi.LLM("m", api_base=server.address, api_key=KEY, cache_dir=tmp_path)
        asked = Request([Message(role="user", content="Hello")], logprobs=1)
        (reply,) = llm.ask_many([asked])
    assert (reply.text, reply.logprobs) == ("Yes", None)
    assert KEY.encode() not in everything(tmp_path)


@each_way
def test_where_a_redirect_leads_is_shown_without_the_key() -> None:
    with (
        AnyServer(302, {"Location": f"/login/{KEY}"}) as server,
        pytest.raises(ModelError) as caught,
    ):
        pi.LLM("m", api_base=server.address, api_key=KEY, cache=False).ask(
            [{"role": "user", "content": "Hello"}]
        )
    assert "redirects to /login/[key]" in str(caught.value)


@examples(50)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=4), st.data())
def test_a_secret_is_masked_however_it_is_escaped(secret: str, data: st.DataObject) -> None:
    escapes: list[Callable[[str], str]] = [str, quote, json.dumps, lambda text: quote(text, "")]
    escape = data.draw(st.sampled_from(escapes))
    said = Secrets([secret]).mask(f"<<{escape(secret)}>>")
    assert said in ("<<[key]>>", '<<"[key]">>')


def test_the_longer_of_two_secrets_is_masked_first_and_plain_words_stay() -> None:
    secrets = Secrets(
        ["abcd", "abcdefgh", "abc", ""], addresses=["http://user:pass1@h/?api-version=2024"]
    )
    assert secrets.mask("abcdefgh, abc, user, 2024, pass1") == "[key], abc, user, 2024, [key]"
    assert "abcd" not in repr(secrets)


ODD_KEY = "ab/cd+ef&gh=ij<kl9876543210"


def escaped(form: str) -> str:
    """The key with each sign in it written by this form, of its number."""
    return "".join(one if one.isalnum() else form.format(ord(one)) for one in ODD_KEY)


@pytest.mark.parametrize(
    "said",
    [
        ODD_KEY.replace("/", "\\/"),  # PHP
        escaped("\\u{:04X}"),  # .NET
        escaped("\\u{:04x}"),
        escaped("\\\\u{:04x}"),  # JSON within JSON
        escaped("%{:02x}"),
        escaped("%25{:02X}"),  # an address within an address
        escaped("&#{};"),
        escaped("&#x{:X};"),
        ODD_KEY.upper(),
        ODD_KEY.replace("a", "%61"),
        ODD_KEY.replace("a", "\\u0061").replace("9", "\\u0039"),
        ODD_KEY.replace("a", "\\\\u0061"),
        "".join(f"&#{ord(one)};" for one in ODD_KEY),
        "".join(f"&#x{ord(one):x};" for one in ODD_KEY),
        "".join(f"%25{ord(one):02x}" for one in ODD_KEY),
        "".join(f"\\u{ord(one):04x}" for one in ODD_KEY),
        "".join(f"\\u{ord(two):04x}" for one in ODD_KEY for two in f"\\u{ord(one):04x}"),
        base64.b64encode(ODD_KEY.encode()).decode(),
        ODD_KEY.encode().hex(),
    ],
)
def test_a_key_is_masked_in_whatever_escape_it_is_repeated(said: str) -> None:
    assert Secrets([ODD_KEY]).mask(f"upstream said {said}!") in (
        "upstream said [key]!",
        "upstream said [key]=!",  # base64 ends so
    )


@pytest.mark.parametrize("key", ["sk-proj-Ab12CdEf34", "sk-proj-Ab12CdEf345", "~Cd34?Ef56>Gh78??"])
@pytest.mark.parametrize("before", ["", ":", "me:", "Bearer ", '{"key": "'])
@pytest.mark.parametrize("after", ["", "!", '"}'])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_key_within_a_text_in_base64_is_masked(
    key: str, before: str, after: str, encode: Callable[[bytes], bytes]
) -> None:
    """A gateway may show the whole header so, or the user and password of Basic authentication."""
    masked = Secrets([key]).mask(encode((before + key + after).encode()).decode())
    begins, found, ends = masked.partition("[key]")
    assert found  # what stays is the code of what stands beside the key, and of a few bits
    assert len(begins) <= 4 / 3 * len(before) + 1
    assert len(ends.rstrip("=")) <= 4 / 3 * len(after) + 2


@pytest.mark.parametrize(
    "header",
    [
        "token=q7SecretToken; theme=dark",
        "key=q7SecretToken",
        'Digest username="bob", response="q7SecretToken"',
        "AWS4-HMAC-SHA256 Credential=AKIA/2026, Signature=q7SecretToken",
        "q7SecretToken,q7OtherToken",
    ],
)
def test_a_part_of_a_header_is_masked(header: str) -> None:
    assert Secrets([header]).mask("the token q7SecretToken is old") == "the token [key] is old"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("Authorization", f"{scheme} qSecretToken")
            for scheme in ("OAuth", "JWT", "SSWS", "Bearer ", "Bearer:")
        ),
        ("X-Auth", "user qSecretToken"),
        ("Authorization", "Token abc:qSecretToken"),
        ("Authorization", 'Token token="qSecretToken"'),
        ("Cookie", "qSecretToken"),
        ("Cookie", "theme=dark; id=qSecretToken"),
        ("X-Session", "id=qSecretToken=="),
        ("Cookie", "id=qSecretToken; theme=dark"),
        ("X-Api-Key", "qSecretToken,qOtherToken"),
        ("X-Pass", "qSecretToken of mine"),
        ("Authorization", "qSecretToken v=2"),
        ("CF-Access-Client", "qSecretToken, v"),
    ],
)
def test_each_word_of_a_header_that_is_named_like_a_secret_is_masked(name: str, value: str) -> None:
    secrets = Secrets(headers={name: value}).with_texts([])
    assert secrets.mask("the token qSecretToken is old") == "the token [key] is old"


def test_the_words_of_a_title_are_no_secrets() -> None:
    said = "the preferences of personal models"
    assert Secrets(["Personal preferences study"]).mask(said) == said


def test_a_short_key_is_masked_in_its_own_case_alone() -> None:
    """vLLM's users write "EMPTY" for no key."""
    assert Secrets(["EMPTY"]).mask("EMPTY is empty") == "[key] is empty"
    assert Secrets(["prod"]).mask("production: prod_1") == "production: [key]_1"


def test_a_reply_with_signs_of_escapes_is_masked_about_as_fast_as_one_without() -> None:
    secrets = Secrets([KEY])
    plain = "The user wants short replies, one half more and with facts. " * 40
    signs = plain.replace("one half", "50%").replace("and", "&")

    def seconds(text: str) -> float:
        return min(timeit.repeat(lambda: secrets.mask_reply(text), number=10, repeat=9))

    assert seconds(signs) < 8 * seconds(plain)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "noise", ["\\", "\\u005c", "%25", "%2525", "&#0", "&amp;", "&#38;", "a", "/ab", " "]
)
def test_secrets_are_masked_in_a_time_that_grows_with_the_length(noise: str) -> None:
    """Where it grew with the square of the length, this would take minutes."""
    text = noise * (200_000 // len(noise))
    assert Secrets([ODD_KEY, f"/{ODD_KEY}"]).mask(text + ODD_KEY) == f"{text}[key]"


@pytest.mark.parametrize(
    "secret",
    ["\\" * 4 + "srv", "\\" * 64, 'pw\\"\\\n1', "%25%25%2525", "&&amp;&x", "a\\\U0001f600z"],
)
def test_secrets_of_escapes_are_masked_in_a_time_that_grows_with_the_length(secret: str) -> None:
    """Where a text matches in several ways, this would take hours."""
    for said in (secret, json.dumps(secret)[1:-1], json.dumps(json.dumps(secret))[3:-3]):
        assert Secrets([secret]).mask(f"<{said}>") == "<[key]>"
    for noise in ("\\", "%25", "&amp;", "\\\\srv", '\\"'):
        Secrets([secret]).mask(noise * 4000)


@each_way
@pytest.mark.parametrize(
    "key", ["Ab3dE6gH9jK2mN5pQ8rS1tU4", "sk-1234567890", "tok_Ab3dE6gH9jK2mN5pQ8rS1tU4"]
)
def test_a_key_in_the_path_of_an_address_is_in_no_error(key: str) -> None:
    base = f"http://127.0.0.1:9/gateway/{key}/v1"
    llm = pi.LLM("m", api_base=base, cache=False, max_attempts=1)
    with pytest.raises(ModelError) as caught:
        llm.ask([{"role": "user", "content": "x"}])
    assert "/gateway/…" in str(caught.value)
    assert key not in f"{caught.value}{llm!r}{llm.transport.endpoint}"
    assert llm.transport.secrets.mask(f"no route /gateway/{key}/v1") == "no route /gateway/[key]/v1"
    other = pi.LLM("m", api_base=base.replace(key, f"{key}X"), cache=False)
    assert other.transport.endpoint != llm.transport.endpoint  # they share no stored replies


@pytest.mark.parametrize(
    "path",
    [
        "openai/deployments/gpt-4o-mini-2024-07-18",
        "v1/0123456789abcdef0123456789abcdef/my-gateway/openai",  # an account, for all that is known
        "v1/projects/my-project-123456/locations/us-central1/endpoints/openapi",
        "models/Meta-Llama-3-1-8B-Instruct-abc12/v1",
        "serving-endpoints/databricks-meta-llama-3-3-70b-instruct",
        "endpoints/1234567890123456789012/v1",
    ],
)
def test_other_paths_are_shown(path: str) -> None:
    assert shown_address(f"https://host.example/{path}") == f"https://host.example/{path}"


@pytest.mark.parametrize("secret", ["000%", "000&", "00%&"])
def test_nothing_of_an_escape_stays(secret: str) -> None:
    for said in (quote(secret), quote(quote(secret)), html.escape(secret)):
        assert Secrets([secret]).mask(f"<<{said}>>") == "<<[key]>>"
