"""What a persona does not want is cut, and nothing else."""

from __future__ import annotations

import pytest

import personainfer as pi
from personainfer.evaluation.salience import without_contrast

# The text with [what must be cut] in brackets.
SENTENCES = """
vivid stories [rather than statistics]
short answers [instead of essays]
clarity [over completeness]
prose [versus bullets]
code [vs. pseudocode]
plain words, [not jargon]
jokes [but not sarcasm]
steps [as opposed to theory]
advice [without lectures]
tables [in place of paragraphs]
[rather than jargon], everyday language
stories [rather than charts] when learning history
brief lists [instead of paragraphs] because time is short
practical tips [over theory], with examples
answers that [do not waste time]
someone who [doesn't trust adverts] but reads reviews
patient people [rather than experts] and enjoys humour
candid replies [over polite ones] so that mistakes show
metric units; [not imperial ones]
one clear choice [rather than options and caveats]
overly careful warnings
answers that get better over time
a reader over 50
help over the phone
control over details
not only facts but also feelings
an overview of the topic
all over the map
talk over problems
a notable, knotty question
"""


@pytest.mark.parametrize("line", SENTENCES.strip().splitlines())
def test_clauses_of_contrast_are_cut(line: str) -> None:
    text = line.replace("[", "").replace("]", "")
    kept = "".join(part.partition("]")[2] if "]" in part else part for part in line.split("["))
    assert without_contrast(text).split() == kept.split()


def test_words_that_a_persona_does_not_want_mark_no_side() -> None:
    pair = pi.Preference(prompt="p", chosen="c", rejected="r")
    chosen = pi.Persona(trait="curious", preference="vivid stories rather than statistics")
    rejected = pi.Persona(trait="sober", preference="plain tables")
    table = pi.PersonaTable([pi.PersonaRow(n, pair, chosen, rejected) for n in range(30)])
    words = {one.word: one.side for one in pi.salient_words(table)}
    assert "statistics" not in words
    assert words["stories"] == "chosen"
