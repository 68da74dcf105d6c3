"""What is given as api_base=, api_key= and extra_headers=: refused if it cannot be sent, and never shown."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import personainfer as pi
from personainfer.api_keys import shown_address
from personainfer.cli.commands import app
from personainfer.exceptions import AuthenticationError, InvalidArgumentError, PersonaInferError

from .builders import AnyServer, examples, pairs

SECRET = "s3cret-0123456789"
MESSAGES = [{"role": "user", "content": "Say hello."}]
PLACE = "http://127.0.0.1:9/v1"

Call = Callable[..., object]
TAKERS: dict[str, Call] = {
    "LLM": lambda **given: pi.LLM("m", **given),
    "infer": lambda **given: pi.infer_personas(pairs(1), "m", **given),
    "batch": lambda **given: pi.submit_batch(pairs(1), "m", "folder", **given),
    "retriever": lambda **given: pi.PersonaRetriever(["a"], ["b"], model="m", **given),
    "scorer": lambda **given: pi.Likelihood("m", **given),
}

every_taker = pytest.mark.parametrize("take", TAKERS.values(), ids=TAKERS)


@given(st.text(st.sampled_from("ab:/?#@&=.\n\r\0\u2028-é"), max_size=12) | st.text(max_size=30))
@examples(60)
def test_every_text_can_be_shown_as_an_address(text: str) -> None:
    assert shown_address(f"{text}#{SECRET}").endswith("#…")
    assert SECRET not in shown_address(f"{text}?{SECRET}")


@every_taker
@pytest.mark.parametrize(
    "address",
    [
        SECRET,  # in the wrong place
        f"ftp://me:{SECRET}@h/v1",
        f"http://me:{SECRET}@ex℀mple.com/v1",
        f"http://me:[{SECRET}]@h/v1",
        f"http://me:{SECRET}[@h/v1",
        f"http://me:{SECRET}@[::1/v1",
        f"http://me:{SECRET}@h:99999/v1",
        f"http://me:{SECRET}@h:port/v1",
        f"http://me:{SECRET}@/v1",
        f"http://me:{SECRET}@h h/v1",
        f"http://me:{SECRET}@{'a' * 300}/v1",
        f"http://me:{SECRET}@\ud800/v1",
        f"http://me:{SECRET}@h/v1\n",
        f"http://\\me:{SECRET}@h/v1",
        f"http://me:12/{SECRET}@h/v1",
        f"http://me:12?{SECRET}@h/v1",
        f"http://me:12#{SECRET}@h/v1",
        f"http://me%3A:{SECRET}@h/v1",
        f"http://me:{SECRET}€@h/v1",
        5,
        [SECRET],
    ],
)  # fmt: skip
def test_no_taker_of_an_address_takes_a_bad_one_or_shows_its_password(
    take: Call, address: Any
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        take(api_base=address)
    assert caught.value.argument == "api_base"
    assert not list(leaks(caught.value, SECRET))


@every_taker
@pytest.mark.parametrize(
    "key",
    ["schlüssel-s3cret", f"{SECRET}😀", f"{SECRET}\n", f" {SECRET}", "\ud800", [SECRET], b"k"],
)
def test_no_taker_of_a_key_takes_one_that_cannot_be_sent(take: Call, key: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        take(api_base=PLACE, api_key=key)
    assert caught.value.argument == "api_key"
    assert not list(leaks(caught.value, SECRET))


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Tenant": f"{SECRET}ü"},
        {"X-Tenant": f"{SECRET}\r\nX-Other: 1"},
        {"X-Tenant": 5, "X-Key": SECRET},
        {"X:Tenant": SECRET},
        {"X Tenant": SECRET},
        {"": SECRET},
        {"Content-Length": SECRET},
        {"transfer-encoding": SECRET},
        [SECRET],
        SECRET,
    ],
)
def test_headers_that_cannot_be_sent_are_refused(headers: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        pi.LLM("m", api_base=PLACE, extra_headers=headers)
    assert caught.value.argument == "extra_headers"
    assert not list(leaks(caught.value, SECRET))


def test_a_key_of_the_environment_that_cannot_be_sent_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{SECRET}\n")
    with pytest.raises(AuthenticationError, match="OPENAI_API_KEY") as caught:
        pi.LLM("m", api_base="https://api.openai.com/v1")
    assert not list(leaks(caught.value, SECRET))


@every_taker
def test_an_endpoint_is_told_a_password_or_a_key_and_not_both(take: Call) -> None:
    with pytest.raises(InvalidArgumentError, match=r"has a password, and api_key= is given too"):
        take(api_base=f"http://me:{SECRET}@127.0.0.1:9/v1", api_key="k")


def test_an_address_is_shown_without_its_secrets() -> None:
    assert (
        shown_address("https://h/v1?api-version=1&key=k#f") == "https://h/v1?api-version=1&key=…#…"
    )
    assert shown_address("http://me:a/b@h/v1") == "http://…@h/v1"


def leaks(error: BaseException, secret: str) -> Iterator[str]:
    """Where an error, or one from which it came, shows the secret, or has it among our variables."""
    found: list[BaseException | None] = [error]
    for one in found:
        if one is None:
            continue
        if secret in f"{one} {one!r} {one.args}":
            yield f"in {type(one).__name__}"
        trace: TracebackType | None = one.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            if f"{Path(pi.__file__).parent}/" in code.co_filename:
                for name, value in trace.tb_frame.f_locals.items():
                    if secret in shown(value):
                        yield f"{code.co_filename}: {code.co_name}: {name}"
            trace = trace.tb_next
        found += [other for other in (one.__cause__, one.__context__) if other not in found]


def shown(value: object) -> str:
    try:
        return repr(value)
    except AttributeError:  # of an object that is not made yet
        return ""


PACKAGES = ("batch", "evaluation", "scoring", "simulation", "tailoring", "users")
SECRETS: dict[str, Any] = {
    "api_base": f"http://me:{SECRET}@127.0.0.1:9/v1",
    "api_key": SECRET,
    "extra_headers": {"X-Tenant": SECRET},
}


def public_takers() -> dict[str, Any]:
    """Every public function and class that takes a key, by its name."""
    names = ("", *(f".{one}" for one in PACKAGES))
    packages = [import_module(f"personainfer{name}") for name in names]
    public = [getattr(package, name) for package in packages for name in package.__all__]
    return {one.__name__: one for one in public if _takes_a_key(one)}


def _takes_a_key(one: Any) -> bool:
    try:
        return "api_key" in inspect.signature(one).parameters
    except (TypeError, ValueError):  # of what is no function, or a builtin
        return False


def finish(result: object) -> object:
    """What a function returns, or the coroutine that it returned."""
    return asyncio.run(result) if inspect.iscoroutine(result) else result


PUBLIC = public_takers()
# Those that pass their options on.
PUBLIC |= {"Verifier": pi.Verifier, "from_table": pi.PersonaRetriever.from_table}


@pytest.mark.parametrize("function", PUBLIC.values(), ids=PUBLIC)
def test_no_public_function_has_a_key_among_its_variables(function: Callable[..., Any]) -> None:
    """Whatever else is wrong with the call."""
    needed = [
        object()
        for one in inspect.signature(function).parameters.values()
        if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
    ]
    for passed in ([], needed, [pairs(1), "m", *needed[2:]][: len(needed)]):
        misspelt = {
            "apikey": SECRET,
            "headers": {"Authorization": SECRET},
            "extra_header": {"X": SECRET},
        }
        for more in ({}, {"no_such_option": 1}, {"timeout": -1}, misspelt):
            with pytest.raises((TypeError, ValueError, PersonaInferError)) as caught:
                finish(function(*passed, **SECRETS, **more))
            assert not list(leaks(caught.value, SECRET))


CALLS: dict[str, Callable[..., object]] = {
    "chat": lambda **given: pi.LLM("m", cache=False, max_attempts=1, **given).ask(MESSAGES),
    "table": lambda **given: pi.infer_personas(
        pairs(1), "m", cache=False, max_attempts=1, on_error="raise", **given
    ),
    "embeddings": lambda **given: pi.PersonaRetriever(["a"], ["b"], model="m", **given),
    "scoring": lambda **given: pi.Likelihood("m", **given).score(["a"], [None], ["b"]),
    "batch": lambda **given: pi.submit_batch(pairs(1), "m", "folder", patience=0.1, **given),
}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, f"No key {SECRET}"),
        (400, f"No key {SECRET}"),
        (302, ""),
        (200, f'{{"error": {{"code": "{SECRET}²"}}}}'),
        (200, f'{{"choices": {{"{SECRET}": 1}}, "data": "{SECRET}"}}'),
        (200, f"<html>{SECRET}"),
        (200, SECRET * 400_000),
        (500, f'{{"error": {{}}, "choices": [{{"message": {{"content": "{SECRET}"}}}}]}}'),
        (200, f'{{"choices": [{{"text": "", "finish_reason": "filter: {SECRET}"}}]}}'),
    ],
    ids=["key", "request", "redirect", "error", "reply", "page", "large", "partial", "filter"],
)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.heavy
def test_what_an_endpoint_repeats_is_not_among_the_variables_either(
    call: Callable[..., object],
    status: int,
    body: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        AnyServer(status, {"Location": f"/{SECRET}", "X-Key": SECRET}, body.encode()) as server,
        pytest.raises(PersonaInferError) as caught,
    ):
        call(api_base=f"{server.address}/v1", api_key=SECRET)
    assert not list(leaks(caught.value, SECRET))


@pytest.mark.parametrize("name", ["chat", "embeddings", "scoring"])
def test_nor_is_a_token_of_the_address(name: str) -> None:
    with (
        AnyServer(body=b" " * 5_000_000) as server,
        pytest.raises(PersonaInferError) as caught,
    ):
        CALLS[name](api_base=f"{server.address}/v1?token={SECRET}")
    assert not list(leaks(caught.value, SECRET))


@pytest.mark.parametrize(
    "header", [f"X-Token: {SECRET}", f"X-Token {SECRET}", f"={SECRET}", SECRET]
)
def test_the_command_shows_no_header_that_it_cannot_read(header: str) -> None:
    run = CliRunner().invoke(app, ["infer", "x.jsonl", "y.parquet", "--extra-header", header])
    assert run.exit_code == 2
    assert SECRET not in run.output


@pytest.mark.parametrize("command", ["infer", "audit", "benchmark"])
def test_no_secret_is_among_the_variables_of_the_command(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("personainfer.llm.client.LLM.__init__", fails)
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({**pairs(1)[0], "user": "u"}) + "\n")
    personas = tmp_path / "personas.jsonl"
    personas.write_text(
        '{"user": "u", "persona": "The user is brief and prefers short answers."}\n'
    )
    data = {
        "infer": [str(file), "--model", "m"],
        "audit": [str(personas), str(file), "--judge", "m"],
        "benchmark": ["m"],
    }
    reach = ["--api-base", f"http://u:{SECRET}@127.0.0.1:9/v1", "--api-key", SECRET]
    headers = [] if command == "audit" else ["--extra-header", f"X-Token={SECRET}"]
    run = CliRunner().invoke(app, [command, *data[command], *reach, *headers])
    assert isinstance(run.exception, RuntimeError), run.output
    assert not list(leaks(run.exception, SECRET))
