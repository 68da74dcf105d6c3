"""Where keys and texts go, and what an endpoint or the data may do."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import personainfer as pi
from personainfer.testing import FakeLLM, Fault

from .attack import PAIRS, attack, broken_if, error_of, is_ours, named


@attack(
    1,
    "A saved table never decides where a key goes.",
    "tests/personas/test_retry.py::test_a_file_never_decides_where_the_pairs_and_the_key_go",
)
def retry_a_table_of_a_stranger(folder: Path) -> str:
    table = folder / "theirs.parquet"
    os.environ["PERSONAINFER_API_KEY"] = "sk-mine"
    with FakeLLM(faults=[Fault.status(500)], api_key="sk-mine") as stranger:
        options: dict[str, Any] = {"api_base": stranger.api_base, "max_attempts": 1, "cache": False}
        pi.infer_personas(PAIRS[:1], "fake", api_key="sk-mine", output=table, **options)
        calls = stranger.calls
        error = error_of(lambda: pi.retry_errors(table, max_attempts=1))
        broken_if(stranger.calls > calls, "the key and the pairs went to the address in the table")
    return named(error)


@attack(
    2,
    "An address that held a password is asked for again.",
    "tests/personas/test_retry.py::test_an_address_that_held_a_password_is_asked_for_again",
)
def retry_a_table_made_at_an_address_with_a_password(folder: Path) -> str:
    table = folder / "table.parquet"
    with FakeLLM(faults=[Fault.status(500)]) as gateway:
        address = gateway.api_base.replace("http://", "http://user:password@")
        options: dict[str, Any] = {"api_base": address, "max_attempts": 1, "cache": False}
        pi.infer_personas(PAIRS[:1], "gpt-4o-mini", output=table, **options)
    asked = _record_hosts()
    error = error_of(lambda: pi.retry_errors(table, max_attempts=1, timeout=5))
    broken_if("api.openai.com" in asked, "the pairs and the key go to api.openai.com")
    broken_if(error is None, "no error")
    return named(error)


def _record_hosts() -> set[str]:
    """The hosts that this process looks up from now on; none is found but this machine."""
    asked: set[str] = set()
    look_up = socket.getaddrinfo

    def record(host: object, *arguments: object, **options: object) -> object:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if name in ("127.0.0.1", "localhost"):
            return look_up(host, *arguments, **options)  # type: ignore[arg-type]
        asked.add(name)
        raise socket.gaierror(socket.EAI_NONAME, "the attack answers no look-up")

    socket.getaddrinfo = record  # type: ignore[assignment]
    return asked


@attack(
    5,
    "A password or token in api_base is in no error, repr, table or report.",
    "tests/personas/test_retry.py::test_no_password_or_token_of_an_address_is_shown",
)
def show_an_address_with_a_password(folder: Path) -> str:
    llm = pi.LLM("fake", api_base="http://user:secret@127.0.0.1:9/v1?token=secret", max_attempts=1)
    table = pi.infer_personas(PAIRS[:1], llm)
    page = folder / "page.html"
    pi.write_report(table, page)
    shown = {
        "the repr of LLM": repr(llm),
        "the repr of AddPersonas": repr(pi.AddPersonas(llm)),
        "a row's error": str(table[0].error),
        "the report": page.read_text(encoding="utf-8"),
        "the settings": str(table.settings),
    }
    leaks = [place for place, text in shown.items() if "secret" in text]
    broken_if(leaks, f"in {', '.join(leaks)}")
    return f"in none of {len(shown)} places"


@attack(
    10,
    "Marks of chat templates in a pair end no turn, in inference and in judges.",
    "tests/personas/test_marks.py::test_marks_are_broken_up_for_inference_judge_and_scoring",
)
def put_marks_of_chat_templates_into_a_pair(folder: Path) -> str:
    marks = [
        "[INST]",
        "<<SYS>>",
        "</s>",
        "<start_of_turn>",
        "<\uff5cUser\uff5c>",
        "[SYSTEM_PROMPT]",
    ]
    marks.append("<|im_start|>")
    text = " ".join(marks)
    row = {"prompt": f"a {text}", "chosen": f"b {text}", "rejected": f"c {text}"}
    with FakeLLM() as llm:
        table = pi.infer_personas([row], "fake", api_base=llm.api_base)
        inferring = len(llm.requests)
        error_of(lambda: pi.verify_personas(table, "fake", api_base=llm.api_base, progress=False))
        said = [str(body["messages"]) for body in llm.requests]
    broken_if(len(said) == inferring, "the judge was not asked")
    for place, texts in (("inference", said[:inferring]), ("the judge", said[inferring:])):
        passed = [mark for mark in marks if any(mark in text for text in texts)]
        broken_if(passed, f"{len(passed)} of {len(marks)} marks reach {place}")
    return f"{len(marks)} marks are broken up"


@attack(
    11,
    "Control characters from an endpoint or the data are escaped where they are shown.",
    "tests/data/test_control_characters.py::test_control_characters_are_escaped_where_rows_are_shown",
)
def show_control_characters(folder: Path) -> str:
    bad = "\x1b]0;title\x07\u202e"
    row = {"prompt": f"a{bad}", "chosen": f"b{bad}", "rejected": "c", "id": f"x{bad}"}
    with FakeLLM(faults=[Fault.status(400, message=f"no{bad}")]) as llm:
        table = pi.infer_personas([row], "fake", api_base=llm.api_base, max_attempts=1)
    shown = {"repr": repr(table), "notebook": table._repr_html_(), "error": str(table[0].error)}
    raw = [place for place, text in shown.items() if "\x1b" in text or "\u202e" in text]
    broken_if(raw, f"raw in {', '.join(raw)}")
    return "escaped"


@attack(
    21,
    "A redirect is not followed.",
    "tests/batch/test_provider.py::test_a_redirect_of_a_batch_is_not_followed",
)
def redirect_to_another_host(folder: Path) -> str:
    with FakeLLM() as other:
        place = {"Location": f"{other.api_base}/chat/completions"}
        with FakeLLM(faults=[Fault.status(307, place)] * 9) as llm:
            error = error_of(lambda: _ask_one(llm))
        broken_if(other.calls, "the pairs went to the other host")
    broken_if(error is not None and not is_ours(error), named(error))
    return "refused"


def _ask_one(llm: FakeLLM) -> None:
    pi.infer_personas(PAIRS[:1], "fake", api_base=llm.api_base, max_attempts=1, cache=False)
