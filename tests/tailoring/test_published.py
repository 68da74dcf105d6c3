"""Published personas that cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from personainfer.exceptions import DataError
from personainfer.tailoring import read_persona_tailoring


@pytest.mark.heavy
def test_published_personas_that_cannot_be_loaded_are_an_error_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be loaded"):
        read_persona_tailoring(tmp_path)  # an empty folder
