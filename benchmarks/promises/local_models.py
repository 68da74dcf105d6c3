"""Local models, and files of weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import personainfer as pi

from .attack import PAIRS, attack, broken_if, error_of, internal, is_ours, named

# Where the module was, and where it is.
ENGINE = ("llm.llamacpp", "embedded", "llm.transports")
WEIGHTS = ("local.weights", "llm.weights", "weights")
SMALL = "smollm2"


def _small_model() -> str:
    """How the tree names the small model: it had no other one."""
    weights = internal(WEIGHTS)
    return f"local:{SMALL}" if hasattr(weights, "NAMED_WEIGHTS") else "local"


@attack(
    4,
    "Two files of weights of the same name and size never share replies.",
    "tests/local/test_weights.py::test_files_of_the_same_name_and_size_have_identities_of_their_own",
)
def swap_weights_of_the_same_name_and_size(folder: Path) -> str:
    identities = set()
    for step in ("a", "b"):
        file = folder / step / "model.gguf"
        file.parent.mkdir()
        file.write_bytes(b"GGUF" + b"\0" * 10_000 + step.encode())
        os.utime(file, ns=(1, 1))
        llm = pi.LLM(f"local:{file}", cache=False)
        transport: Any = getattr(llm, "transport", None) or vars(llm)["_transport"]
        identities.add(transport.endpoint)
    broken_if(len(identities) < 2, "both are one model to the cache")
    return "each has its own"


@attack(
    6,
    "The server of a local model answers this process alone.",
    "tests/llm/test_llamacpp.py::test_nobody_else_can_use_the_server",
)
def use_the_server_of_another_user(folder: Path) -> str:
    weights = internal(WEIGHTS).find_weights(_small_model())
    engine = internal(ENGINE)
    if hasattr(engine, "local_model"):
        loop = internal(["event_loop"])
        coming = engine.local_model(weights).server()
        server = loop.run(coming) if hasattr(loop, "run") else loop.spawn(coming).result()
    else:
        server = engine.running_server(weights)
    address = server.api_base.removesuffix("/v1")
    statuses: dict[str, object] = {}
    for path, body in {
        "/completion": {"prompt": "Hello", "n_predict": 1},
        "/slots/0?action=erase": {},
        "/tokenize": {"content": "Hello"},
    }.items():
        request = urllib.request.Request(
            address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Origin": "http://stranger.example"},
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                statuses[path] = reply.status
        except urllib.error.HTTPError as error:
            statuses[path] = error.code
        except urllib.error.URLError:  # it listens on no port
            statuses[path] = "no connection"
    seen = ", ".join(f"{path.partition('?')[0]} {status}" for path, status in statuses.items())
    broken_if(not set(statuses.values()) <= {401, "no connection"}, seen)
    return seen


@attack(
    19,
    "A file that holds no model is an error that says so.",
    "tests/local/test_weights.py::test_what_is_no_model_is_an_error",
)
def load_what_is_no_model(folder: Path) -> str:
    file = folder / "model.gguf"
    file.write_bytes(b"not a model " * 1000)
    error = error_of(lambda: pi.infer_personas(PAIRS[:1], f"local:{file}", cache=False))
    broken_if(not is_ours(error), f"raw {named(error)}")
    return named(error)


_KILLED = """
import os, signal, sys, personainfer as pi
model, module, action = sys.argv[1:]
Transport = getattr(__import__(module, fromlist=["_"]), "EmbeddedTransport")
act = getattr(Transport, action)
async def act_and_die(self, slot, what, name):
    done = await act(self, slot, what, name)
    print("a slot was saved", what, flush=True)
    if what == "save":
        os.kill(os.getpid(), signal.SIGKILL)
    return done
setattr(Transport, action, act_and_die)
pairs = [("Question " * 9 + str(n), "Short.", "A longer answer.") for n in range(3)]
pi.infer_personas(pairs, model, cache=False, progress=False)
"""


@attack(
    25,
    "A kill leaves nothing of what a local model has read.",
    "tests/llm/test_llamacpp.py::test_a_kill_leaves_nothing_of_what_was_read",
)
def kill_while_a_local_model_reads(folder: Path) -> str:
    engine = internal(ENGINE)
    action = "_act_on_slot" if hasattr(engine.EmbeddedTransport, "_act_on_slot") else "_copy"
    temporary = folder / "temporary"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, _small_model(), engine.__name__, action],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    broken_if(done.returncode != -signal.SIGKILL, f"not killed: {done.stderr[-200:]}")
    size = 0
    for path in temporary.rglob("*"):
        with suppress(OSError):
            size += path.stat().st_size if path.is_file() else 0
    broken_if(size, f"{size / 1e6:.0f} MB of what was read stay in the temporary folder")
    return "nothing stays"
