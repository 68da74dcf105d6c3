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


# Lists within a clause of contrast, with which the rule was made.
LISTS = """
answers, [not statistics, charts or tables]
warm stories, [not data, figures and formulas], for bedtime
direct advice [rather than hints, riddles or metaphors]
plain steps [instead of theory, history, or background]
short replies, [without disclaimers, apologies, or filler], that get to work
code first, [not prose], with comments
examples [over definitions, axioms and proofs]
honest criticism [rather than praise], clear reasons, and next steps
recipes [without meat, fish or eggs]
someone who [does not like small talk, gossip or flattery]
local food, [not chains, franchises or malls], when travelling
lists of facts, dates, and names
not only charts but also tables, maps and plots
[rather than charts], stories or jokes
plain answers, [not jargon], in English or French
"""

# Written before the rule was tried on them, and not used to mend it.
HELD_OUT = """
gentle guidance [rather than orders, deadlines or scolding]
rules of thumb, [not equations, derivations, or proofs]
a single recommendation [instead of surveys, rankings or comparisons]
deep focus, [without music, chatter or notifications], in the morning
handwritten notes [over apps, spreadsheets or dashboards] when planning
evidence from trials, [not anecdotes, testimonials or rumours]
light novels [versus epics, tragedies or memoirs]
people who [don't trust banks, brokers or insurers]
walks in nature [as opposed to gyms, treadmills and classes]
quick fixes [rather than long lectures, exhaustive manuals or formal courses]
sketches [in place of words], colours, and plenty of space
paper maps, [not phones], with contour lines or grids
modest claims [without hype], careful wording, and references
an answer in one line, [not paragraphs, bullets, tables, or footnotes]
music, art, and films about ordinary people
"""


@pytest.mark.parametrize(
    "line", [line for line in (SENTENCES + LISTS + HELD_OUT).splitlines() if line]
)
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
