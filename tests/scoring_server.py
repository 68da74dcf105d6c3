"""A loopback server that scores: vLLM's and llama.cpp's own calls, over a model small enough to check.

A token is a byte of UTF-8, or one of two marks. After a token, each other one is the likelier the more
often it followed before: a persona that has the words of a response lifts it.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any, Literal

START, END = 256, 257
MARKS = {"<|im_start|>": START, "<|im_end|>": END}
VOCABULARY = 258

Body = dict[str, Any]


def tokens_of(text: str, *, special: bool) -> list[int]:
    """Bytes, and marks where they count."""
    pieces = re.split("|".join(map(re.escape, MARKS)), text) if special else [text]
    marks = [MARKS[mark] for mark in re.findall("|".join(map(re.escape, MARKS)), text)]
    tokens = list(pieces[0].encode())
    for mark, piece in zip(marks if special else [], pieces[1:], strict=True):
        tokens += [mark, *piece.encode()]
    return tokens


def chat_text(messages: Sequence[Body]) -> str:
    """ChatML, which has no defence against marks in what it is given."""
    turns = [f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


def distribution(context: Sequence[int]) -> list[float]:
    """log p of each next token: how often it followed the last one, smoothed."""
    return smoothed(Counter(b for a, b in pairwise(context) if a == context[-1]))


def smoothed(followers: Counter[int]) -> list[float]:
    """log p of each next token, of how often each one followed before."""
    total = VOCABULARY + 8 * followers.total()
    log_p = [math.log(1 / total)] * VOCABULARY
    for token, count in followers.items():
        log_p[token] = math.log((1 + 8 * count) / total)
    return log_p


def ranked(followers: Counter[int]) -> list[int]:
    """All tokens, the likeliest first."""
    seen = sorted(followers, key=lambda token: (-followers[token], token))
    return seen + [token for token in range(VOCABULARY) if token not in followers]


def log_probabilities(prefix: Sequence[int], response: Sequence[int]) -> list[float]:
    """log p of each token of a response."""
    whole = [*prefix, *response]
    return [distribution(whole[:n])[whole[n]] for n in range(len(prefix), len(whole))]


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # connections that wait: with 5, others are tried again after a second


class ScoringServer:
    """`with ScoringServer("vllm") as server`: `server.api_base`; what was asked is in `server.asked`."""

    def __init__(self, kind: Literal["vllm", "llama.cpp", "neither"]) -> None:
        routes: dict[str, dict[str, Callable[[Body], Body]]] = {
            "vllm": {
                "/tokenize": self._vllm_tokenize,
                "/v1/completions": self._vllm_completions,
            },
            "llama.cpp": {
                "/tokenize": self._llama_tokenize,
                "/apply-template": self._llama_template,
                "/completion": self._llama_completion,
            },
            "neither": {},
        }
        self.routes = routes[kind]
        self.asked: list[tuple[str, Body]] = []
        self.keys: list[str | None] = []
        self.failures: list[tuple[int, Body]] = []  # sent first
        self.refuses: Callable[[str, Body], bool] = lambda path, body: False
        self.refusal: tuple[int, Body] = (400, {})
        self.without_probabilities = False
        self.llguidance_ends = False  # after one token
        self.prefills = False  # goes on with a last turn of the assistant, as llama.cpp by default
        self.context = 4096  # tokens
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def api_base(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def bodies(self, path: str) -> list[Body]:
        """What was asked of one path."""
        return [body for asked, body in self.asked if asked == path]

    def __enter__(self) -> ScoringServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def do_GET(self) -> None:
                props = {"default_generation_settings": {"n_ctx": outer.context}}
                found = self.path == "/props" and "/apply-template" in outer.routes
                self.reply(*((200, props) if found else (404, {})))

            def do_POST(self) -> None:
                outer.keys.append(self.headers["Authorization"])
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.reply(*outer.answer(self.path, body))

            def reply(self, status: int, reply: Body) -> None:
                content = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def answer(self, path: str, body: Body) -> tuple[int, Body]:
        """Status and reply."""
        self.asked.append((path, body))
        if self.failures:
            return self.failures.pop(0)
        if self.refuses(path, body):
            return self.refusal
        if path not in self.routes:
            return 404, {"error": {"message": "Not Found"}}
        return 200, self.routes[path](body)

    def _vllm_tokenize(self, body: Body) -> Body:
        text = chat_text(body["messages"]) if "messages" in body else body["prompt"]
        tokens = tokens_of(text, special=True)
        return {"tokens": tokens, "count": len(tokens), "max_model_len": self.context}

    def _vllm_completions(self, body: Body) -> Body:
        prompt, ranks = body["prompt"], body["prompt_logprobs"]
        records: list[Body | None] = [None]
        after: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for last, token in pairwise(prompt):
            log_p, likeliest = smoothed(after[last]), ranked(after[last])
            after[last][token] += 1
            kept = dict.fromkeys([token, *likeliest[:ranks]])
            records.append(
                {
                    str(t): {
                        "logprob": log_p[t],
                        "rank": likeliest.index(t) + 1,
                        "decoded_token": "?",
                    }
                    for t in kept
                }
            )
        choice: Body = {"index": 0, "text": "a", "finish_reason": "length"}
        if not self.without_probabilities:
            choice["prompt_logprobs"] = records
        return {"object": "text_completion", "choices": [choice]}

    def _llama_template(self, body: Body) -> Body:
        messages = body["messages"]
        if self.prefills and messages[-1]["role"] == "assistant":
            return {"prompt": chat_text(messages[:-1]) + messages[-1]["content"]}
        return {"prompt": chat_text(messages)}

    @staticmethod
    def _llama_tokenize(body: Body) -> Body:
        tokens = tokens_of(body["content"], special=bool(body.get("parse_special", True)))
        if not body.get("with_pieces"):
            return {"tokens": tokens}
        pieces = [{"id": t, "piece": chr(t) if t < 128 else [t]} for t in tokens]
        return {"tokens": pieces}

    def _llama_completion(self, body: Body) -> Body:
        forced = [int(token) for token in re.findall(r"<\[(\d+)\]>", body["grammar"])]
        if self.llguidance_ends and "%llguidance" in body["grammar"]:
            forced[1:] = [ord("a")] * len(forced[1:])
        said, records = list(body["prompt"]), []
        for token in forced[: body["n_predict"]]:
            log_p = distribution(said)
            likeliest = sorted(range(VOCABULARY), key=lambda t: -log_p[t])[: body["n_probs"]]
            top = [{"id": t, "logprob": log_p[t]} for t in likeliest]
            records.append({"id": token, "logprob": log_p[token], "top_logprobs": top})
            said.append(token)
        return {"completion_probabilities": records}
