"""A provider's batch API: upload a file of requests, make a batch of it, download files of replies.

OpenAI and Azure are called through litellm, other endpoints through the openai SDK. litellm raises an error
if a compatible server's answer lacks one of OpenAI's fields, although the batch then already exists.
No method retries. All of them block.
"""

from __future__ import annotations

import json
import re
import ssl
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Unpack

from ..api_keys import Secrets, SecretText, openai_headers
from ..connections import certificates
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
from ..llm.refusals import provider_errors, redact
from ..llm.transports import EmbeddedTransport, EndpointTransport, Transport
from ..observability import silent_libraries
from .lines import request_line
from .states import BatchState, find_batch, id_once_read, state_of

if TYPE_CHECKING:
    import openai
    from _typeshed import SupportsWrite

_URL: Any = "/v1/chat/completions"
_COMPLETION_WINDOW: Any = "24h"  # the only one there is
_TIMEOUT = 60.0  # seconds for a question
_FILE_TIMEOUT = 600.0  # seconds between two bytes of a file
_DOWNLOAD_SECONDS = 6 * 3600.0  # for a whole file of replies
_LARGEST_ANSWER = 2**24  # bytes of an answer that is no file, such as a list of batches
_LARGEST_LINE = 2**20  # bytes of a request's reply in a file, on average
_MOST_MODELS = 1000  # to search for one
_OF_BATCHES = re.compile(r"/(files|batches)(/|$)")


def batch_api(transport: Transport) -> BatchAPI:
    """Return the batch API of the provider that a transport reaches. Nothing is sent yet.

    Raises:
        InvalidArgumentError: the provider has no batch API, or none that is supported; or the address has a
            query or a deployment of Azure.
        AuthenticationError: the key of OpenAI or Azure is not set.
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


class BatchAPI(Protocol):
    """The calls of a provider's batch API.

    Every method but `close` may raise a ModelError: the connection or the key failed, or the provider refused
    the call or answered with something that cannot be read.
    """

    def line(self, name: str, body: bytes) -> bytes:
        """Return a line of the file that is uploaded: the request as a single call would send it.

        Args:
            name: the name of the request, which comes back with its answer.
            body: the request as JSON.
        """

    def upload(self, path: Path) -> str:
        """Send a file of lines, wait until the provider has read it, and return its id.

        Raises:
            ReplyError: the provider has not read it within an hour.
            OSError: the file cannot be read.
        """

    def create(self, file_id: str) -> BatchState:
        """Start a batch from an uploaded file. This costs money."""

    def find(self, file_id: str) -> BatchState | None:
        """Return the state of the batch that was made of an uploaded file, or None if there is none.

        Raises:
            ReplyError: the provider does not list its batches, or not the files of which they were made.
        """

    def look(self, batch_id: str) -> BatchState:
        """Ask the provider for the state of a batch."""

    def download(self, file_id: str, file: SupportsWrite[bytes], requests: int) -> None:
        """Write the provider's file of replies or errors to an open file.

        Args:
            file_id: the provider's id of the file.
            file: where its bytes are written.
            requests: how many requests it may answer. A file of more than 1 MiB for each, and 16 MiB, is an
                error.
        """

    def close(self) -> None:
        """Close the connections. A later call may open new ones."""


class EndpointBatches:
    """The batch API of an endpoint with OpenAI's protocol, through the openai SDK."""

    def __init__(self, transport: EndpointTransport) -> None:
        self._endpoint = transport.endpoint
        self._transport = transport
        self._key = transport.key
        self._headers = {  # the SDK's own header for the key is one of the user's, if they name it
            "Authorization" if name.lower() == "authorization" else name: text
            for name, text in transport.headers.items()
        }
        self._made: openai.OpenAI | None = None
        self._knows_name = False

    def line(self, name: str, body: bytes) -> bytes:
        """Return a line with the very bytes that a single call would send to /chat/completions.

        If the endpoint may know the model by either of two names, the first call asks it by GET /models.
        """
        if not self._knows_name and self._transport.has_two_names:
            self._look_up_name()
        self._knows_name = True
        return request_line(name, _URL, self._transport.written(body))

    def _look_up_name(self) -> None:
        """Learn by GET /models which name of the model the endpoint knows. A ModelError is ignored.

        With the wrong name, every request of a batch would fail.
        """
        with suppress(ModelError), self._client(_TIMEOUT) as client:
            listed = islice(client.models.list(), _MOST_MODELS)
            self._transport.learn_name({model.id for model in listed})

    @keeps_no_cause
    def upload(self, path: Path) -> str:
        """POST /files. See `BatchAPI.upload`."""
        try:
            with self._client(_FILE_TIMEOUT) as client, path.open("rb") as file:
                made = client.files.create(file=(path.name, file), purpose="batch")
                return id_once_read(made, client.files.retrieve, self._transport.secrets)
        except ModelNotFoundError as error:
            raise ModelNotFoundError(
                error.message,
                hint=f"{self._endpoint} seems to have no batch API (/files, /batches):"
                " use infer_personas.",
            ) from None

    @keeps_no_cause
    def create(self, file_id: str) -> BatchState:
        """POST /batches. See `BatchAPI.create`."""
        with self._client(_TIMEOUT) as client:
            return state_of(
                client.batches.create(
                    input_file_id=file_id, endpoint=_URL, completion_window=_COMPLETION_WINDOW
                ),
                self._transport.secrets,
            )

    @keeps_no_cause
    def find(self, file_id: str) -> BatchState | None:
        """GET /batches, up to 1,000 batches, the newest first. See `BatchAPI.find`."""
        with self._client(_TIMEOUT) as client:
            list_all = partial(client.batches.list, limit=100)
            return find_batch(file_id, list_all, client.files.retrieve, self._transport.secrets)

    @keeps_no_cause
    def look(self, batch_id: str) -> BatchState:
        """GET /batches/{id}. See `BatchAPI.look`."""
        with self._client(_TIMEOUT) as client:
            return state_of(client.batches.retrieve(batch_id), self._transport.secrets)

    @keeps_no_cause
    def download(self, file_id: str, file: SupportsWrite[bytes], requests: int) -> None:
        """GET /files/{id}/content, and write it piece by piece. See `BatchAPI.download`."""
        with (
            self._client(_FILE_TIMEOUT, **_download(requests)) as client,
            client.files.with_streaming_response.content(file_id) as reply,
        ):
            for piece in reply.iter_bytes():
                file.write(piece)

    def close(self) -> None:
        """Close the client of the SDK, if there is one. A later call makes another."""
        if self._made is not None:
            self._made.close()
            self._made = None

    @contextmanager
    def _client(self, timeout: float, **rules: Unpack[Rules]) -> Iterator[openai.OpenAI]:
        """Yield the client of the SDK, and translate the errors of the block as `_errors` does.

        Args:
            timeout: seconds to wait for the provider.
            rules: see `_errors`.
        """
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
                    proxy=self._transport.proxy(), verify=context, trust_env=False
                ),
            )
        with _errors(self._endpoint, timeout, self._transport.secrets, **rules):
            yield self._made.with_options(timeout=timeout)


def _headers_alone(headers: Mapping[str, str], key: str) -> dict[str, Any]:
    """Return the headers for the SDK's client; `Omit` hides each that it would take from the environment."""
    import openai

    own = {"Authorization": SecretText(f"Bearer {key or 'none'}"), **headers}
    return {**dict.fromkeys(openai_headers(), openai.Omit()), **own}


class LiteLLMBatches:
    """The batch API of OpenAI and Azure, through litellm."""

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
        """Return a line with the request as litellm translates it for this model in a single call."""
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
        """Call litellm.create_file. See `BatchAPI.upload`."""
        import litellm

        with self._errors(), path.open("rb") as file:
            made = litellm.create_file(
                file=(path.name, file), purpose="batch", **self._call(_FILE_TIMEOUT)
            )
            look = partial(litellm.file_retrieve, **self._call(_TIMEOUT))
            return id_once_read(made, look, self._secrets)

    @keeps_no_cause
    def create(self, file_id: str) -> BatchState:
        """Call litellm.create_batch. See `BatchAPI.create`."""
        import litellm

        with self._errors():
            return state_of(
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
        """Call litellm.list_batches, for up to 1,000 batches, the newest first. See `BatchAPI.find`."""
        import litellm

        with self._errors():
            list_all = partial(litellm.list_batches, limit=100, **self._call(_TIMEOUT))
            look = partial(litellm.file_retrieve, **self._call(_TIMEOUT))
            return find_batch(file_id, list_all, look, self._secrets)

    @keeps_no_cause
    def look(self, batch_id: str) -> BatchState:
        """Call litellm.retrieve_batch. See `BatchAPI.look`."""
        import litellm

        with self._errors():
            return state_of(
                litellm.retrieve_batch(batch_id=batch_id, **self._call(_TIMEOUT)), self._secrets
            )

    @keeps_no_cause
    def download(self, file_id: str, file: SupportsWrite[bytes], requests: int) -> None:
        """Call litellm.file_content, and write it at once. See `BatchAPI.download`."""
        import litellm

        with self._errors(**_download(requests)):
            reply = litellm.file_content(file_id=file_id, **self._call(_FILE_TIMEOUT))
            file.write(reply.content)

    def close(self) -> None:
        """Do nothing: litellm keeps its own clients."""

    def _call(self, timeout: float) -> dict[str, Any]:
        """Return the arguments of every call of litellm: the model's options, the provider, no retries."""
        return {
            **self._options,
            "custom_llm_provider": self._provider,
            "timeout": timeout,
            "max_retries": 0,
        }

    def _translated(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a request, but for the messages, as litellm translates them for this model.

        `settings` are these fields, and lose their "model", which litellm does not take.
        """
        import litellm

        del settings["model"]
        name = json.dumps(settings)
        if name not in self._settings:
            taken = litellm.get_optional_params(
                model=self._name, custom_llm_provider=self._provider, drop_params=True, **settings
            )
            taken |= taken.pop("extra_body", None) or {}  # the openai SDK does so in single calls
            self._settings[name] = {
                key: value for key, value in taken.items() if key != "stream" or value
            }
        return dict(self._settings[name])

    def _add_headers(self, request: Any, client: Any, is_call: bool) -> bool:
        """Add the user's headers to a request about files or batches: litellm lists batches without them."""
        if _OF_BATCHES.search(request.url.path):  # another signs in, or is a callback's
            request.headers.update(self._options.get("extra_headers") or {})
        return is_call

    @contextmanager
    def _errors(self, **rules: Unpack[Rules]) -> Iterator[None]:
        """Check the address, then translate the errors of the block, as `_errors` of this module does.

        Raises:
            ReplyError: litellm cannot read the provider's answer.
            AuthenticationError: litellm refused the address or the key before it sent anything.
            ModelError: any other failure of the call.
        """
        import openai
        import pydantic

        self._check_address()
        try:
            rules["prepare"] = self._add_headers
            with silent_libraries(), _errors(self._provider, _FILE_TIMEOUT, self._secrets, **rules):
                yield
        except pydantic.ValidationError as error:
            raise ReplyError(
                f"litellm cannot read what {self._provider} answered: {error.errors()[0]['msg']}."
            ) from None
        except openai.OpenAIError as error:  # raised before anything is sent: an address or a key
            raise AuthenticationError(redact(f"{self._provider}: {error}", self._secrets)) from None


def _broken_off() -> tuple[type[Exception], ...]:
    """Return the error classes of the SDK's HTTP client: httpx up to openai 2, httpx2 from openai 3 on."""
    clients = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return tuple(client.HTTPError for client in clients)


@contextmanager
def _errors(name: str, timeout: float, secrets: Secrets, **rules: Unpack[Rules]) -> Iterator[None]:
    """Translate the errors of the openai SDK in the block to ModelErrors, and bound what is read.

    It does what `provider_errors` does, and also translates broken JSON and an interrupted download.
    OSErrors, such as those of the user's file, pass.

    Args:
        name: the provider, as errors name it.
        timeout: the seconds of the call's time-out, for the error.
        secrets: texts that are replaced by "[key]" in errors.
        rules: other limits than the usual ones of an answer: its bytes, and its seconds.

    Raises:
        ModelError: the call failed; or it went through an HTTP client that nothing keeps from following
            redirects, which is fatal.
    """
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
        raise ModelError(
            f"{name} was called by an HTTP client that may follow redirects.",
            hint="Something in this process changed httpx during the call.",
            fatal=True,
        )


def _download(requests: int) -> Rules:
    """Return the limits for a download of replies to so many requests: bytes and seconds."""
    return {"largest": _LARGEST_ANSWER + requests * _LARGEST_LINE, "seconds": _DOWNLOAD_SECONDS}
