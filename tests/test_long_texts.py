"""Long texts that repeat themselves: the time to read them grows with their length, not with its square."""

from __future__ import annotations

import subprocess
import sys

import pytest

LENGTH = 300_000  # characters: a pattern that tries each start with each end would take hours
READ_PAIR = "list(read_preferences([{'prompt': text, 'chosen': 'a', 'rejected': text}]))"
ASK = "pair_message(pi.Preference(prompt=text, chosen='a', rejected=text))"
FLAG = "find_flags(pi.Persona(trait=text, preference='b'), pair)"
ACCENTS = r"'a' + '\u0301\u0316' * (LENGTH // 2)"
READERS = {
    "a mark in a pair": ("'<' + '_' * LENGTH", ASK),
    "a tag in a pair": ("'<' + ' ' * LENGTH", ASK),
    "a list in a cell": ("'[' + ' ' * LENGTH", READ_PAIR),
    "a transcript": (r"'\n\nHuman: ' * (LENGTH // 9)", READ_PAIR),
    "a name": ("chr(201) + chr(233) * LENGTH", FLAG),
    "initials": ("'A. ' * (LENGTH // 3)", FLAG),
    "a word of an attribute": ("'black ' * (LENGTH // 6)", FLAG),
    "the answer of a judge": ("'1' + '.' * LENGTH + 'x'", "judge._bare(text)"),
    "a trait that repeats itself": (
        "'who is ' * (LENGTH // 7)",
        "pi.Persona(trait=text, preference='b')",
    ),
    "dots and blanks in it": ("'1' + ' .' * (LENGTH // 2)", "judge._bare(text)"),
    "sentences of a prefix": (
        "'x' + '.' * LENGTH + 'x'",
        "list(attribution._SENTENCE.finditer(text))",
    ),
    "tags of a prefix": ("' ' * LENGTH + 'x'", "attribution._TAG.split(text)"),
    "sentences of a response": (
        "'.' * LENGTH + 'x'",
        "heterogeneity._SENTENCE_END.findall(text)",
    ),
    "accents of a prompt": (ACCENTS, "bare_text(text)"),
    "accents in an index": (ACCENTS, "bm25.words(text)"),
    "accents of a persona": (ACCENTS, "salience._words(pi.Persona(trait=text, preference='b'))"),
    "items of a list": (
        r"'\n' * LENGTH + 'x'",
        "heterogeneity.TEXT_FEATURES['list items'](text)",
    ),
    "blanks in a persona": ("'The user likes a' + ' ' * LENGTH + 'b.'", "tastes_in(text)"),
    "clauses of contrast": ("'over ' * (LENGTH // 20)", "without_contrast(text)"),
    "a list after a contrast": ("'not, ' * (LENGTH // 20)", "without_contrast(text)"),
    "a header": ("'0' * LENGTH + 'x'", "refusals._wait(text, 0.0)"),
}
SCRIPT = """
import personainfer as pi
from personainfer.data.containers import read_preferences
from personainfer.evaluation import judge, salience
from personainfer.evaluation.salience import without_contrast
from personainfer.llm import refusals
from personainfer.personas.flags import find_flags
from personainfer.personas.prompts import bare_text, pair_message
from personainfer.simulation import heterogeneity
from personainfer.tailoring import bm25
from personainfer.users import attribution
from personainfer.users.predictors import tastes_in
LENGTH = {length}
pair = pi.Preference(prompt="p", chosen="a", rejected="b")
for name, (text, read) in {readers}.items():
    print(name, flush=True)
    text = eval(text)
    try:
        eval(read)
    except pi.PersonaInferError:
        pass
"""


@pytest.mark.heavy
def test_a_long_text_is_read_in_a_time_that_grows_with_its_length() -> None:
    script = SCRIPT.format(length=LENGTH, readers=READERS)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == list(READERS)
