"""What users may add to a request and a connection: fields, headers, proxies, certificates, addresses."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import personainfer as pi
from personainfer.cli.commands import app
from personainfer.exceptions import InvalidArgumentError, ModelError, TransportError
from personainfer.testing import FakeLLM, Fault

from ..builders import each_way, pairs

MESSAGES = [{"role": "user", "content": "Say hello."}]


@each_way
def test_more_fields_are_sent_and_are_part_of_the_key_and_the_settings(llm: FakeLLM) -> None:
    """Qwen3's chat_template_kwargs (vllm#17356), a provider's routing."""
    body = {"chat_template_kwargs": {"enable_thinking": False}, "top_k": 20}
    options: dict[str, Any] = {"api_base": llm.api_base, "extra_body": body}
    table = pi.infer_personas(pairs(1), "fake", reasoning_effort="low", **options)
    sent = llm.requests[0]
    assert {name: sent[name] for name in body} == body
    assert sent["reasoning_effort"] == "low"
    assert table.settings["extra_body"] == body
    assert pi.infer_personas(pairs(1), "fake", reasoning_effort="low", **options).usage.cached == 1
    assert pi.infer_personas(pairs(1), "fake", api_base=llm.api_base).usage.cached == 0


@each_way
def test_a_temperature_of_none_is_left_out(llm: FakeLLM) -> None:
    pi.LLM("fake", api_base=llm.api_base, temperature=None).ask(MESSAGES)
    assert "temperature" not in llm.requests[0]


@pytest.mark.parametrize("name", ["messages", "model", "stream", "n", "max_completion_tokens"])
def test_what_the_library_says_itself_is_refused_before_any_call(llm: FakeLLM, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="extra_body="):
        pi.LLM("fake", api_base=llm.api_base, extra_body={name: 1})
    assert llm.calls == 0


@pytest.mark.parametrize(
    "options",
    [
        {"extra_headers": {"X-Team": 5}},
        {"extra_headers": {"X-Team": "a\nb"}},
        {"extra_headers": {"": "x"}},
        {"extra_headers": "X: y"},
        {"extra_body": [1]},
        {"extra_body": {"a": {1, 2}}},
        {"reasoning_effort": 3},
    ],
)
def test_bad_extras_are_refused(llm: FakeLLM, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{next(iter(options))}="):
        pi.LLM("fake", api_base=llm.api_base, **options)


@each_way
def test_headers_are_sent_and_kept_secret(llm: FakeLLM) -> None:
    secret = "token-of-the-gateway-123"
    model = pi.LLM("fake", api_base=llm.api_base, extra_headers={"X-Token": secret})
    table = pi.infer_personas(pairs(1), model)
    assert llm.headers[0]["X-Token"] == secret
    assert secret not in f"{model!r} {model.settings} {model.options} {table.settings}"
    with FakeLLM(Fault.status(400, message=f"bad token {secret}")) as server:
        model = pi.LLM("fake", api_base=server.api_base, extra_headers={"X-Token": secret})
        with pytest.raises(ModelError) as caught:
            model.ask(MESSAGES)
    assert "bad token [key]" in str(caught.value)


# Not by litellm, whose "openai/…" takes no query: there it is "azure/…".
def test_an_address_as_azure_has_them_keeps_its_query_and_its_header() -> None:
    """The path goes before the query, not behind it."""
    with FakeLLM(api_key="azure-key-0123") as server:
        base = server.api_base.replace("/v1", "/openai/deployments/gpt?api-version=2024-10-21")
        table = pi.infer_personas(pairs(2), "gpt", api_base=base, api_key="azure-key-0123")
        assert not table.errors
        assert server.paths[0] == "/openai/deployments/gpt/chat/completions?api-version=2024-10-21"
        assert server.headers[0]["api-key"] == "azure-key-0123"
        assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("query", ["", "?api-version=2024-10-21"])
def test_the_path_of_completions_may_stand_in_an_address(query: str) -> None:
    """So Azure shows the "target URI" of a deployment."""
    with FakeLLM() as server:
        base = f"{server.api_base}/chat/completions{query}"
        assert not pi.infer_personas(pairs(1), "gpt", api_base=base, cache=False).errors
        assert server.paths == [f"/v1/chat/completions{query}"]


@pytest.mark.parametrize("query", ["", "?api-version=2024-10-21", "/?u=/chat/completions"])
def test_an_address_is_one_with_and_without_the_path_of_completions(query: str) -> None:
    """It has one place in the cache, and one limit."""
    short = pi.LLM("gpt", api_base=f"http://127.0.0.1:9/v1{query.removeprefix('/')}")
    long = pi.LLM("gpt", api_base=f"http://127.0.0.1:9/v1/chat/completions{query}")
    assert short.reached == long.reached
    assert short.is_called_as(long)


@each_way
def test_no_password_of_an_address_reaches_an_error() -> None:
    model = pi.LLM(
        "fake", api_base="http://me:hunter22@127.0.0.1:9/v1?token=abcd1234", max_attempts=1
    )
    with pytest.raises(TransportError) as caught:
        model.ask(MESSAGES)
    assert "hunter22" not in str(caught.value)
    assert "abcd1234" not in str(caught.value)


@each_way
def test_a_redirect_is_not_followed(llm: FakeLLM) -> None:
    """Prompts must not go where the user did not send them."""
    fault = Fault.response({}, 307, {"Location": f"{llm.api_base}/chat/completions"})
    with FakeLLM(fault) as server, pytest.raises(ModelError, match="307"):
        pi.LLM("fake", api_base=server.api_base).ask(MESSAGES)
    assert llm.calls == 0


@each_way
def test_a_certificate_file_that_is_not_there_is_an_error_of_the_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    model = pi.LLM("fake", api_base="https://127.0.0.1:9/v1", max_attempts=1, cache=False)
    with pytest.raises(TransportError, match="SSL_CERT_FILE"):
        model.ask(MESSAGES)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A PEM file with a key and a certificate of its own for 127.0.0.1."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    path = tmp_path / "own.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    command += " -subj /CN=test -addext subjectAltName=IP:127.0.0.1 -keyout"
    parts = [*command.split(), str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run(parts, check=True, capture_output=True, timeout=60)
    path.write_text((tmp_path / "key.pem").read_text() + (tmp_path / "cert.pem").read_text())
    return path


@contextmanager
def guarded(certificate: Path) -> Iterator[str]:
    """An endpoint that talks to those alone who show this certificate."""
    answer = json.dumps({"choices": [{"message": {"content": "hello"}}]}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@each_way
@pytest.mark.heavy
@pytest.mark.parametrize("trusted", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_the_certificates_of_the_environment_are_used(
    certificate: Path, trusted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "SSL_CERTIFICATE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(trusted, str(certificate))
    with guarded(certificate) as base:
        with pytest.raises(TransportError):
            pi.LLM("fake", api_base=base, cache=False, max_attempts=1).ask(MESSAGES)
        monkeypatch.setenv("SSL_CERTIFICATE", str(certificate))
        assert pi.LLM("fake", api_base=base, cache=False).ask(MESSAGES).text == "hello"
        monkeypatch.setenv("SSL_CERTIFICATE", str(certificate.with_name("none.pem")))
        with pytest.raises(TransportError, match="SSL_CERTIFICATE="):
            pi.LLM("fake", api_base=base, cache=False, max_attempts=1).ask(MESSAGES)


@each_way
@pytest.mark.parametrize("protocol", ["joint", "separate"])
def test_no_prompt_asks_a_model_to_think(llm: FakeLLM, protocol: Any) -> None:
    """A model that reasons does so by itself; the evidence that it gives is a part of the persona."""
    pi.infer_personas(pairs(1), "o3", api_base=llm.api_base, protocol=protocol, cache=False)
    sent = " ".join(turn["content"] for body in llm.requests for turn in body["messages"]).lower()
    asked = (
        r"think (first|step|about|carefully|hard)|step by step|reason (first|step|about)|chain of"
    )
    assert not re.search(asked, sent)
    assert "max_completion_tokens" in llm.requests[0]


@each_way
def test_the_command_line_says_all_of_it(llm: FakeLLM, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps(pairs(1)[0]) + "\n")
    command = ["infer", str(data), "--output", str(tmp_path / "o.parquet"), "-m", "fake"]
    command += ["--api-base", llm.api_base, "--temperature", "none", "--no-cache"]
    command += ["--extra-body", '{"top_k": 20}', "--extra-header", "X-Team=one"]
    run = CliRunner().invoke(app, [*command, "--reasoning-effort", "low"])
    assert run.exit_code == 0, run.output
    sent = llm.requests[0]
    assert "temperature" not in sent
    assert (sent["top_k"], sent["reasoning_effort"]) == (20, "low")
    assert llm.headers[0]["X-Team"] == "one"


def test_the_passwords_of_netrc_are_sent_to_no_endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would go instead of the key, and with them the caller's choice."""
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine model.invalid login user password secret\n")
    look_up = socket.getaddrinfo
    monkeypatch.setattr(
        "socket.getaddrinfo",
        lambda host, *more, **options: look_up("127.0.0.1", *more, **options),
    )
    with FakeLLM() as server:
        base = server.api_base.replace("127.0.0.1", "model.invalid")
        for key in ("mine", None):
            pi.LLM("fake", api_base=base, api_key=key, cache=False, max_attempts=1).ask(MESSAGES)
        assert [sent.get("Authorization") for sent in server.headers] == ["Bearer mine", None]
