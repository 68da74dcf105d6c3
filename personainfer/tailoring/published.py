"""Read the published personas of "Whose Boat Does it Float?" (arXiv 2501.11549) as a `PersonaTable`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from ..data.file_formats import FILES
from ..data.table import PersonaTable
from ..exceptions import InvalidArgumentError, MissingExtraError

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
        A table of all rows and all columns. A row without a persona has an error.

    Raises:
        InvalidArgumentError: `personas` is not known, or a column is missing.
        DataError: the data cannot be loaded or read.
        MissingExtraError: the package `datasets` is not installed, for a name on the hub or a folder.
    """
    InvalidArgumentError.check("personas", personas, _SUFFIX)
    suffix = _SUFFIX[personas]
    data: Any = source
    if isinstance(source, str | Path) and Path(source).suffix not in FILES:
        datasets = MissingExtraError.require("datasets")
        config = None if Path(source).is_dir() else name
        data = datasets.load_dataset(str(source), config, split=split)
    table = PersonaTable.from_data(
        data,
        chosen_persona=f"chosen_persona_{suffix}",
        rejected_persona=f"rejected_persona_{suffix}",
    )
    table.settings["model"] = "meta-llama/Llama-3.1-405B-Instruct"
    return table
