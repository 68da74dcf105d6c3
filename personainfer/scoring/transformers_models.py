"""Load a transformers model and its tokenizer from a hub id, a folder, a `.gguf` file or a LoRA adapter."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..exceptions import InvalidArgumentError, MissingExtraError, ModelNotFoundError
from ..local.paths import read_small_file
from ..local.weights import find_weights
from ..preferences.cells import read_json

if TYPE_CHECKING:
    import torch


def check_installed(name: str) -> None:
    """Check that the packages and files exist which `load_model(name)` needs. The model is not loaded.

    The weights of a local model ("local", "local:NAME") are fetched if they are not on this machine.

    Raises:
        MissingExtraError: a package is not installed.
        InvalidArgumentError: an adapter does not name its base model, or a file of weights is missing.
        ModelNotFoundError: the weights of a local model cannot be fetched.
    """
    base = _adapter_base(name)
    source = _source(base or name)
    needed = ["torch", "transformers", "accelerate"]
    needed += ["gguf"] * source.endswith(".gguf") + ["peft"] * (base is not None)
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingExtraError.of(
            missing, f"{name} is scored by transformers, which needs {' and '.join(missing)}."
        )


def load_model(
    name: str, *, device: str | None = None, dtype: str | None = None
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer with transformers.

    Args:
        name: a Hugging Face id, a folder, the path of a .gguf file, a local model ("local", "local:NAME"), or
            the folder of a LoRA adapter that peft saved. An adapter is merged into its base model. What is
            not on this machine is fetched.
        device: a device of torch, such as "cuda:1"; None: "cuda" if there is one, else "cpu".
        dtype: a type of torch, such as "bfloat16"; None: float32 on a CPU, the checkpoint's own on a GPU.

    Returns:
        The model, in evaluation mode, and the tokenizer.

    Raises:
        InvalidArgumentError: there is no such device, type or file of weights, or an adapter does not name
            its base model.
        MissingExtraError: a package is not installed.
        ModelNotFoundError: the model cannot be fetched, or transformers cannot load it.
    """
    check_installed(name)
    place = _device(device)
    base = _adapter_base(name)
    model, tokenizer = _load(_source(base or name), place, _dtype(dtype, place))
    if base is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, name).merge_and_unload()
    return model.eval(), tokenizer


def _source(name: str) -> str:
    """Return what transformers loads: the name itself, or the file of a local model's weights."""
    local = name == "local" or name.startswith("local:")
    return str(find_weights(name, engine=False).path()) if local else name


def _adapter_base(name: str) -> str | None:
    """Return the name of the base model of a LoRA adapter; None if `name` is not an adapter's folder.

    Raises:
        InvalidArgumentError: the adapter does not name its base model.
    """
    folder = _existing_path(name)
    if folder is None or not (path := folder / "adapter_config.json").is_file():
        return None
    try:
        base = read_json(read_small_file(path))["base_model_name_or_path"]
    except (OSError, ValueError, TypeError, KeyError):
        base = None
    if not isinstance(base, str) or not base:
        raise InvalidArgumentError(
            f"{path} does not say which model the adapter belongs to.",
            hint='Give it "base_model_name_or_path": a hub id, a folder, a .gguf file or "local".',
        )
    return base


def _existing_path(name: str) -> Path | None:
    """Return the file or the folder that a name is the path of; None: there is none."""
    with suppress(OSError, ValueError, RuntimeError):  # no name that a file could have
        path = Path(name).expanduser()
        return path if path.exists() else None
    return None


def _load(name: str, device: torch.device, dtype: str) -> tuple[Any, Any]:
    """Load a model and its tokenizer. Raises ModelNotFoundError if transformers cannot."""
    import transformers

    path = _existing_path(name)
    source, options, unpacked = name, dict[str, Any](), {}
    if path is not None and path.is_dir():
        source = str(path)
    elif path is not None and path.is_file():
        source, options = str(path.parent), {"gguf_file": path.name}
        if hasattr(transformers, "GgufConfig"):  # without it, weights stay quantised: not trainable
            unpacked = {"quantization_config": transformers.GgufConfig(dequantize=True)}
    with _quiet():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, **options, **unpacked
            )
        except (OSError, ValueError) as error:
            raise ModelNotFoundError(
                f"transformers cannot load {name}: {' '.join(str(error).split())[:300]}",
                hint="Give a hub id, a folder with weights and tokenizer, or a .gguf file.",
            ) from None
    if options and path is not None:
        _mend_tokenizer(tokenizer, path)
    return model.to(device), tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' warnings and progress bars in the block, but for the bar of reading a .gguf file."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _mend_tokenizer(tokenizer: Any, path: Path) -> None:
    """Split SmolLM's text into single digits, as its file says: transformers splits it as GPT-2's."""
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    field = GGUFReader(path).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        parts = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(parts)


def _device(name: str | None) -> torch.device:
    """Return a device of torch. Raises InvalidArgumentError if this machine does not have it."""
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidArgumentError(
            f"device={name!r} is not there: {str(error).splitlines()[0]}",
            hint='Leave it out, or give "cpu".',
        ) from None
    return device


def _dtype(name: str | None, device: torch.device) -> str:
    """Return the name of a type of torch, or "auto". Raises InvalidArgumentError for an unknown name."""
    import torch

    chosen = name or ("float32" if device.type == "cpu" else "auto")
    if chosen != "auto" and not isinstance(getattr(torch, chosen, None), torch.dtype):
        raise InvalidArgumentError(
            f"dtype={name!r} is not a type of torch.", hint='Give "float32", "bfloat16" or "auto".'
        )
    return chosen
