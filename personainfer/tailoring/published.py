"""Read the published personas of "Whose Boat Does it Float?" (arXiv 2501.11549) as a `PersonaTable`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from ..data.file_formats import FILES
from ..data.table import PersonaTable
from ..exceptions import DataError, InvalidArgumentError, MissingExtraError

PersonaSource = Literal["gold", "retrieved"]
Source = str | Path | Iterable[Mapping[str, Any]]

_SUFFIX = {"gold": "gold", "retrieved": "retr"}


def read_persona_tailoring(
    source: Source = "nbalepur/persona-tailoring",
    name: str | None = "BeaverTails",
    *,
    split: str = "test",
    personas: PersonaSource = "gold",
) -> PersonaTable:
    """Read preference pairs with the personas that Llama-3.1-405B inferred from them.

    Args:
        source: the data set's name on the Hugging Face hub, a folder, a file, or dicts. The columns are
            `prompt`, `chosen`, `rejected`, `chosen_persona_gold`, `chosen_persona_retr`,
            `rejected_persona_gold` and `rejected_persona_retr`.
        name: the configuration on the hub: "BeaverTails", "Anthropic HHH" or "Mnemonic". Not used for a
            folder, a file or dicts.
        split: "fewshot", "sft_train", "sft_val", "dpo_train", "dpo_val" or "test". Not used for a file or
            dicts.
        personas: "gold": those inferred from the pair itself. "retrieved": those of the nearest training
            prompt.

    Returns:
        A table of all rows and all columns. A row without any persona has an error.

    Raises:
        InvalidArgumentError: `personas` is not known, a column is missing, or there is no such file.
        DataError: the data cannot be loaded or read.
        MissingExtraError: the package `datasets` is not installed, for a name on the hub or a folder.
    """
    InvalidArgumentError.check("personas", personas, _SUFFIX)
    suffix = _SUFFIX[personas]
    data: Any = source
    if isinstance(source, str | Path) and Path(source).suffix not in FILES:
        data = load_split(source, None if Path(source).is_dir() else name, split)
    table = PersonaTable.from_data(
        data,
        chosen_persona=f"chosen_persona_{suffix}",
        rejected_persona=f"rejected_persona_{suffix}",
    )
    table.settings["model"] = "meta-llama/Llama-3.1-405B-Instruct"
    return table


def load_split(
    source: str | Path, config: str | None, split: str, *, file: Path | None = None
) -> Any:
    """Load one split of a published data set with the package `datasets`, as a `datasets.Dataset`.

    Args:
        source: the data set's name on the Hugging Face hub, from where it is downloaded, or its folder.
        config: the configuration to load; None: the only one.
        split: the name of the split.
        file: the file of JSON lines that holds the split. None, or a file that does not exist: the data set
            says where the split is.

    Raises:
        MissingExtraError: the package `datasets` is not installed.
        DataError: there is no such data set, configuration or split, or it cannot be fetched or read.
    """
    datasets = MissingExtraError.require("datasets")
    try:
        if file is not None and file.exists():
            return datasets.load_dataset("json", data_files={split: str(file)}, split=split)
        return datasets.load_dataset(str(source), config, split=split)
    except Exception as error:  # of the hub, the network or the files: each has its own classes
        raise DataError(
            f"{str(source)!r:.200} cannot be loaded: {error}".rstrip("."),
            hint="Check the name, the files and the connection.",
        ) from error
