"""A provider's batch API: upload a file of requests, make a batch of it, download files of replies.

OpenAI and Azure are called through litellm, other endpoints through the openai SDK. litellm raises an error
if a compatible server's answer lacks one of OpenAI's fields, although the batch then already exists.
No method retries.
"""

from __future__ import annotations

import json
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Unpack

from ..api_keys import Secrets, SecretText, openai_headers
from ..connections import certificates, environment_proxy
from ..exceptions import (
    AuthenticationError,
    InvalidArgumentError,
    ModelError,
    ModelNotFoundError,
    PersonaInferError,
    ReplyError,
    TransportError,
    keeps_no_cause,
    unreadable,
)
from ..http_guard import Rules
from ..llm.litellm_transport import LiteLLMTransport
from ..llm.llamacpp import EmbeddedTransport
from ..llm.refusals import provider_errors, redact
from ..llm.transports import EndpointTransport, Transport
from ..observability import silent_libraries
from .lines import provider_words, request_line

if TYPE_CHECKING:
    import openai
    from _typeshed import SupportsWrite

FINAL = frozenset({"completed", "failed", "expired", "cancelled"})  # statuses that do not change

_URL: Any = "/v1/chat/completions"
_COMPLETION_WINDOW: Any = "24h"  # the only one there is
_TIMEOUT = 60.0  # seconds for a question
_FILE_TIMEOUT = 600.0  # seconds between two bytes of a file
_DOWNLOAD_SECONDS = 6 * 3600.0  # for a whole file of replies
_LARGEST_ANSWER = 2**24  # bytes of an answer that is no file, such as a list of batches
_LARGEST_LINE = 2**20  # bytes of a request's reply in a file, on average
_FILE_PATIENCE = 3600.0  # seconds for the provider to read a file
_FILE_POLL_SECONDS = 2.0  # seconds between two checks whether the provider has processed a file
_MOST_COUNTED = 2**31  # requests of a batch
_LONGEST_NAME = 2000  # characters of the id of a file or a batch
_MOST_LISTED = 1000  # how many models, or of the newest batches, to search for one


def batch_api(transport: Transport) -> BatchAPI:
    """The batch API of the provider that a transport reaches.

    Raises:
        InvalidArgumentError: the provider has none.
        AuthenticationError: the provider's key is not set.
    """
    if isinstance(transport, EmbeddedTransport):
        raise InvalidArgumentError(
            "the embedded model has no batch API.", hint="Call infer_personas: it costs nothing."
        )
    if isinstance(transport, EndpointTransport):
        if "?" in transport.endpoint or "/openai/deployments/" in transport.endpoint:
            raise InvalidArgumentError(
                f"api_base={transport.endpoint!r} is no address that has batches: it has a query or a"
                " deployment.",
                hint="For Azure write model='azure/NAME' and api_base='https://….openai.azure.com'.",
                argument="api_base",
            )
        return EndpointBatches(transport)
    assert isinstance(transport, LiteLLMTransport)
    if transport.provider not in LiteLLMBatches.PROVIDERS:
        raise InvalidArgumentError(
            f"model={transport.model!r}: batches of {transport.provider} are not supported.",
            hint=f"Only {' and '.join(LiteLLMBatches.PROVIDERS)} are, and endpoints named by"
            " api_base=. Use infer_personas instead.",
        )
    transport.check_key()
    return LiteLLMBatches(transport)


@dataclass(frozen=True, slots=True)
class BatchState:
    """The state of a batch at the provider. `problem` is the provider's reason for a failure."""

    batch_id: str
    status: str
    answered: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    problem: str = ""


class BatchAPI(Protocol):
    """The calls of a provider's batch API. Every method may raise a ModelError."""

    def line(self, name: str, body: bytes) -> bytes:
        """A line of the uploaded file: the request as a single call would send it, and its name."""

    def upload(self, path: Path) -> str:
        """Send a file of lines; returns its id."""

    def create(self, file_id: str) -> BatchState:
        """Start a batch from an uploaded file. This costs money."""

    def find(self, file_id: str) -> BatchState | None:
        """The batch that was made of this file, if there is one."""

    def look(self, batch_id: str) -> BatchState:
        """The state of a batch."""

    def download(self, file_id: str, file: SupportsWrite[bytes], requests: int) -> None:
        """Write the provider's file of replies to so many requests to an open one."""

    def close(self) -> None:
        """Close the connections."""


class EndpointBatches:
    """Uploads requests, makes, lists and reads batches, and downloads replies, by the OpenAI protocol."""

    def __init__(self, transport: EndpointTransport) -> None:
        self._endpoint = transport.endpoint
        self._transport = transport
        self._key = transport.key
        self._headers = {  # the SDK's own header for the key is one of the user's, if they name it
            "Authorization" if name.lower() == "authorization" else name: text
            for name, text in transport.headers.items()
        }
        self._secrets = transport.secrets
        self._made: openai.OpenAI | None = None
        self._knows_name = False

    def line(self, name: str, body: bytes) -> bytes:
        """The very bytes that go to /chat/completions."""
        if not self._knows_name and self._transport.has_two_names:
            self._look_up_name()
        self._knows_name = True
        return request_line(name, _URL, self._transport.written(body))

    def _look_up_name(self) -> None:
        """GET /models. In a batch, each row would fail if the endpoint knows the model by its other name."""
        with suppress(ModelError), self._client(_TIMEOUT) as client:
            listed = islice(client.models.list(), _MOST_LISTED)
            self._transport.learn_name({model.id for model in listed})

    @keeps_no_cause
    def upload(self, path: Path) -> str:
        """POST /files."""
        try:
            with self._client(_FILE_TIMEOUT) as client, path.open("rb") as file:
                made = client.files.create(file=(path.name, file), purpose="batch")
                return _read(made, client.files.retrieve, self._secrets)
        except ModelNotFoundError as error:
            raise ModelNotFoundError(
                error.message,
                hint=f"{self._endpoint} seems to have no batch API (/files, /batches):"
                " use infer_personas.",
            ) from None

    @keeps_no_cause
    def create(self, file_id: str) -> BatchState:
        """POST /batches."""
        with self._client(_TIMEOUT) as client:
            return _state(
                client.batches.create(
                    input_file_id=file_id, endpoint=_URL, completion_window=_COMPLETION_WINDOW
                ),
                self._secrets,
            )

    @keeps_no_cause
    def find(self, file_id: str) -> BatchState | None:
        """GET /batches."""
        with self._client(_TIMEOUT) as client:
            return _made_of(file_id, partial(client.batches.list, limit=100), self._secrets)

    @keeps_no_cause
    def look(self, batch_id: str) -> BatchState:
        """GET /batches/{id}."""
        with self._client(_TIMEOUT) as client:
            return _state(client.batches.retrieve(batch_id), self._secrets)

    @keeps_no_cause
    def download(self, file_id: str, file: SupportsWrite[bytes], requests: int) -> None:
        """GET /files/{id}/content, piece by piece."""
        with (
            self._client(_FILE_TIMEOUT, **_download(requests)) as client,
            client.files.with_streaming_response.content(file_id) as reply,
        ):
            for piece in reply.iter_bytes():
                file.write(piece)

    def close(self) -> None:
        """Close the client, if there is one; a later call makes another."""
        if self._made is not None:
            self._made.close()
            self._made = None

    @contextmanager
    def _client(self, timeout: float, **rules: Unpack[Rules]) -> Iterator[openai.OpenAI]:
        import openai

        if self._made is None:
            # Reading the trusted certificates takes 30 ms, and http:// needs none.
            is_secure = self._endpoint.startswith("https://")
            context = certificates() if is_secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            # Without a key the SDK would send the user's key for OpenAI.
            self._made = openai.OpenAI(
                base_url=self._endpoint,
                api_key=self._key or "none",
                max_retries=0,
                default_headers=_headers_alone(self._headers, self._key),
                http_client=openai.DefaultHttpxClient(
                    proxy=environment_proxy(self._endpoint), verify=context, trust_env=False
                ),
            )
        with _errors(self._endpoint, timeout, self._secrets, **rules):
            yield self._made.with_options(timeout=timeout)


def _headers_alone(headers: Mapping[str, str], key: str) -> dict[str, Any]:
    """The headers of the SDK's client, and none of those that the user's environment has for OpenAI."""
    import openai

    own = {"Authorization": SecretText(f"Bearer {key or 'none'}"), **headers}
    return {**dict.fromkeys(openai_headers(), openai.Omit()), **own}


class LiteLLMBatches:
    """Files and batches of the providers whose batches are OpenAI's, through litellm."""

    PROVIDERS = ("openai", "azure")

    def __init__(self, transport: LiteLLMTransport) -> None:
        self._written = transport.dialect.written  # a request as single calls send it
        self._name = transport.name
        self._provider = provider = transport.provider
        self._check_address = transport.check_address
        self._options = dict(transport.options)
        self._secrets = transport.secrets
        self._url = _URL if provider == "openai" else _URL.removeprefix("/v1")
        self._settings: dict[str, dict[str, Any]] = {}  # translated ones, by what they were

    def line(self, name: str, body: bytes) -> bytes:
        """The request as litellm translates it for this model before it sends it."""
        from litellm.types.utils import LlmProviders
        from litellm.utils import ProviderConfigManager

        request = json.loads(self._written(body))
        messages = request.pop("messages")
        config = ProviderConfigManager.get_provider_chat_config(
            model=self._name, provider=LlmProviders(self._provider)
        )
        sent = config.transform_request(
            model=self._name,
            messages=messages,
            optional_params=self._translated(request),
            litellm_params={},
            headers={},
        )
        return request_line(name, self._url, json.dumps(sent, ensure_ascii=False).encode())

    @keeps_no_cause
    def upload(self, path: Path) -> str:
        """litellm.create_file."""
        import litellm

        with self._errors(), path.open("rb") as file:
            made = litellm.create_file(
                file=(path.name, file), purpose="batch", **self._call(_FILE_TIMEOUT)
            )
            look = partial(litellm.file_retrieve, **self._call(_TIMEOUT))
            return _read(made, look, self._secrets)

    @keeps_no_cause
    def create(self, file_id: str) -> BatchState:
        """litellm.create_batch."""
        import litellm

        with self._errors():
            return _state(
                litellm.create_batch(
                    input_file_id=file_id,
                    endpoint=self._url,
                    completion_window=_COMPLETION_WINDOW,
                    **self._call(_TIMEOUT),
                ),
                self._secrets,
            )

    @keeps_no_cause
    def find(self, file_id: str) -> BatchState | None:
        """litellm.list_batches."""
        import litellm

        with self._errors():
            list_all = partial(litellm.list_batches, limit=100, **self._call(_TIMEOUT))
            return _made_of(file_id, list_all, self._secrets)

    @keeps_no_cause
    def look(self, batch_id: str) -> BatchState:
        """litellm.retrieve_batch."""
        import litellm

        with self._errors():
            return _state(
                litellm.retrieve_batch(batch_id=batch_id, **self._call(_TIMEOUT)), self._secrets
            )

    @keeps_no_cause
    def download(self, file_id: str, file: SupportsWrite[bytes], requests: int) -> None:
        """litellm.file_content."""
        import litellm

        with self._errors(**_download(requests)):
            reply = litellm.file_content(file_id=file_id, **self._call(_FILE_TIMEOUT))
            file.write(reply.content)

    def close(self) -> None:
        """litellm keeps its own clients."""

    def _call(self, timeout: float) -> dict[str, Any]:
        return {
            **self._options,
            "custom_llm_provider": self._provider,
            "timeout": timeout,
            "max_retries": 0,
        }

    def _translated(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The fields of a request, except its messages, as litellm translates them for this model."""
        import litellm

        del settings["model"]
        name = json.dumps(settings)
        if name not in self._settings:
            taken = litellm.get_optional_params(
                model=self._name, custom_llm_provider=self._provider, drop_params=True, **settings
            )
            ours = ("stream", "extra_body")  # litellm adds them, and does not send them if empty
            self._settings[name] = {
                key: value for key, value in taken.items() if key not in ours or value
            }
        return dict(self._settings[name])

    @contextmanager
    def _errors(self, **rules: Unpack[Rules]) -> Iterator[None]:
        import openai
        import pydantic

        self._check_address()
        try:
            with silent_libraries(), _errors(self._provider, _FILE_TIMEOUT, self._secrets, **rules):
                yield
        except pydantic.ValidationError as error:
            raise ReplyError(
                f"litellm cannot read what {self._provider} answered: {error.errors()[0]['msg']}."
            ) from None
        except openai.OpenAIError as error:  # raised before anything is sent: an address or a key
            raise AuthenticationError(redact(f"{self._provider}: {error}", self._secrets)) from None


def _broken_off() -> tuple[type[Exception], ...]:
    """The errors of the SDK's HTTP client: httpx up to openai 2, httpx2 from openai 3 on."""
    clients = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return tuple(client.HTTPError for client in clients)


@contextmanager
def _errors(name: str, timeout: float, secrets: Secrets, **rules: Unpack[Rules]) -> Iterator[None]:
    """`provider_errors`, and errors that the SDK lets through: broken JSON, an interrupted download."""
    import openai
    import pydantic

    bounds: Rules = {"largest": _LARGEST_ANSWER, "seconds": _TIMEOUT, **rules}
    try:
        with provider_errors(name, timeout, secrets, **bounds) as exchange:
            yield
    except _broken_off() as error:
        raise TransportError(redact(f"the connection to {name} failed: {error}", secrets)) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise TransportError(f"{name} answered with something that is not JSON.") from None
    except (PersonaInferError, OSError, openai.OpenAIError, pydantic.ValidationError):
        raise  # OSError: of a file of the user's
    except Exception as error:
        raise unreadable(f"what {name} answered", error) from None
    if not exchange.answers:
        unguarded = ModelError(
            f"{name} was called by an HTTP client that may follow redirects.",
            hint="Something in this process changed httpx during the call.",
        )
        unguarded.fatal = True
        raise unguarded


def _download(requests: int) -> Rules:
    return {"largest": _LARGEST_ANSWER + requests * _LARGEST_LINE, "seconds": _DOWNLOAD_SECONDS}


def _read(made: Any, look: Callable[[str], Any], secrets: Secrets) -> str:
    """Wait until the provider has processed a file, as Azure requires; returns its id."""
    name = _id(made, "file", secrets)
    ends = time.monotonic() + _FILE_PATIENCE
    while getattr(made, "status", None) == "pending":
        if time.monotonic() > ends:
            raise ReplyError(
                f"the provider has not read the file {name} within {_FILE_PATIENCE:g} s."
            )
        time.sleep(_FILE_POLL_SECONDS)
        made = look(name)
    return name


def _made_of(file_id: str, list_all: Callable[[], Any], secrets: Secrets) -> BatchState | None:
    """The batch made of a file; None only if a list of the provider's batches shows that there is none."""
    try:
        batches = list_all()
    except (AttributeError, TypeError):  # the SDK's, where it is given JSON that is not a list
        batches = None
    if not isinstance(getattr(batches, "data", None), list):
        raise ReplyError("the provider answered with something that is not a list of batches.")
    newest = list(_distinct(islice(batches, _MOST_LISTED), secrets))
    files = [getattr(batch, "input_file_id", None) for batch in newest]
    if newest and not any(files):  # some may lack a file: Azure also makes batches of other things
        raise ReplyError("the provider does not say which files its batches were made of.")
    return _state(newest[files.index(file_id)], secrets) if file_id in files else None


def _distinct(batches: Iterable[Any], secrets: Secrets) -> Iterator[Any]:
    """The batches of a list up to one that was there before: its pages may go round in a circle."""
    seen = set[str]()
    for batch in batches:
        name = _name(getattr(batch, "id", None), secrets) or ""
        if name in seen:
            return
        seen.add(name)
        yield batch


def _id(answer: Any, kind: str, secrets: Secrets) -> str:
    name = _name(getattr(answer, "id", None), secrets)
    if name is None:
        raise ReplyError(f"the provider answered with something that is not a {kind}.")
    return name


def _name(value: object, secrets: Secrets) -> str | None:
    """An id; None where it is none, or could not be part of a file and of an address.

    Ids are stored and shown, so one that repeats a key is none.
    """
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME:
        return None
    if {".", ".."} & set(value.split("/")) or set("?#") & set(value):
        return None
    is_text = value.isascii() and value.isprintable()
    return value if is_text and secrets.mask_reply(value) == value else None


def _file_of(batch: Any, field: str, secrets: Secrets) -> str | None:
    """The id of one of a batch's files; None where no text names one yet.

    Raises:
        ReplyError: there is one that cannot be asked for. To wait for another would have no end.
    """
    value = getattr(batch, field, None)
    if not isinstance(value, str) or not value:
        return None
    name = _name(value, secrets)
    if name is None:
        said = provider_words(value, secrets)[:80]
        raise ReplyError(
            f"the provider says {said!r} for the batch's {field}, which is no id of a file."
        )
    return name


def _count(value: object) -> int:
    return min(max(value, 0), _MOST_COUNTED) if isinstance(value, int) else 0


def _state(batch: Any, secrets: Secrets) -> BatchState:
    counts = getattr(batch, "request_counts", None)
    status = str(getattr(batch, "status", None) or "unknown")
    problems = getattr(getattr(batch, "errors", None), "data", None)
    found = problems if isinstance(problems, list) else []
    words = dict.fromkeys(
        provider_words(getattr(problem, "message", problem), secrets) for problem in found
    )
    return BatchState(
        batch_id=_id(batch, "batch", secrets),
        status=status if status in FINAL else provider_words(status, secrets),
        answered=sum(_count(getattr(counts, kind, 0)) for kind in ("completed", "failed")),
        output_file_id=_file_of(batch, "output_file_id", secrets),
        error_file_id=_file_of(batch, "error_file_id", secrets),
        problem="; ".join(islice(words, 3)),
    )
