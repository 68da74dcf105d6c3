"""The usual names of columns by role, the likelier names first, and the columns of known data sets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from itertools import chain
from typing import Final

# A column with such a name may hold the prompt, or something else.
VAGUE_PROMPTS: Final = tuple(
    "input context contents dialog dialogue post history text info x".split()
)
PROMPTS: Final = (
    *"prompt messages conversations conversation question instruction query user_prompt".split(),
    *VAGUE_PROMPTS,
    *"user_query user_message user_input prompt_text question_text problem".split(),
)
# Texts that a prompt may be about.
SUBJECTS: Final = ("passage", "document", "article", "background", "body", "selftext")
ASKS: Final = frozenset(  # last words of names of columns that may hold the prompt
    "prompt prompts question questions query instruction instructions problem task request ask message"
    " utterance user human".split()
)
THINGS = "response output answer completion conversation candidate summary text reply generation"
_OPPOSITES = (
    "chosen rejected|preferred dispreferred|preferred non_preferred|accepted rejected|positive negative"
    "|pos neg|better worse|best worst|good bad|winner loser|win lose|w l|selected rejected"
    "|winning losing|accept reject"
)


class NameSets(tuple[tuple[str, ...], ...]):
    """Hundreds of tuples of column names, one name for each of a few roles; likelier ones come first."""

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        places: dict[str, list[int]] = {}
        for place, names in enumerate(self):
            places.setdefault(plain_name(names[0]), []).append(place)
        return places

    def starting_with(self, names: Iterable[str]) -> list[tuple[str, ...]]:
        """Return the tuples whose first name is one of `names`, the likelier ones first.

        Args:
            names: names of columns in the form of `plain_name`.
        """
        return [self[n] for n in sorted(n for name in names for n in self._places.get(name, ()))]


PAIRS: Final = NameSets(
    (
        ("chosen", "rejected"),
        ("response_j", "response_k"),
        *(
            (form.format(good, thing), form.format(bad, thing))
            for good, bad in (each.split() for each in _OPPOSITES.split("|"))
            for form in ("{0}_{1}", "{1}_{0}")
            for thing in (*THINGS.split(), "messages")
        ),
        *((good, bad) for good, bad in (each.split() for each in _OPPOSITES.split("|"))),
        ("y_w", "y_l"),
        # ms-swift: the last turn of its messages is the chosen response
        ("response", "rejected_response"),
        ("messages", "rejected_messages"),
        ("messages", "rejected_response"),
    )
)
# Pairs of names that may also be tags or counts, such as wins and losses, beside two responses with a label.
TAGS: Final = frozenset(_OPPOSITES.split("|")) - {"chosen rejected"}
_SIDES: Final = "1 2|a b|0 1|left right|first second"


def _two(things: str) -> Iterator[tuple[str, str]]:
    """Yield pairs of names of columns that hold two things of a kind, such as two responses.

    Args:
        things: words with spaces between. Each word gives a pair for each spelling of the two sides: "text"
            gives (text_1, text_2), (text1, text2), (text_a, text_b), …, (left_text, right_text), ….
    """
    for thing in things.split():
        for one, two in (side.split() for side in _SIDES.split("|")):
            yield f"{thing}_{one}", f"{thing}_{two}"
            yield f"{thing}{one}", f"{thing}{two}"
            if one not in "01":
                yield f"{one}_{thing}", f"{two}_{thing}"


TWO: Final = NameSets((("human_ref_A", "human_ref_B"), *_two(THINGS)))
LABELS: Final = tuple(
    "better_response_id winner label labels preference overall_pref preferred better best choice verdict"
    " chosen overall_preference preference_strength".split()  # a strength may have a side beside it
)
ONE_HOT: Final = (
    ("winner_model_a", "winner_model_b", "winner_tie"),
    ("winner_a", "winner_b", "winner_tie"),
)
SCORED: Final = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_reward", "rejected_reward"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)
VOTES: Final = ("normal_worker_annotations", "expert_worker_annotations")  # MultiPref
LISTS: Final = tuple(
    "responses completions answers generations candidates outputs summaries".split()
)
LIST_SCORES: Final = ("scores", "ratings", "rankings", "ranks", "rewards")
RESPONSES: Final = ("response", "model_response", "completion", "answer", "output")
SCORES: Final = ("score", "rating", "helpfulness", "overall_score", "reward", "rank")
SYSTEMS: Final = tuple(
    "system system_prompt system_message system_instruction system_instructions sys_prompt".split()
)
HISTORIES: Final = tuple(
    "history chat_history conversation_history dialogue_history dialog_history previous_turns"
    " previous_messages".split()
)
# The person who chose, as in PRISM and OpenAssistant (user_id), Community Alignment (annotator_id), TL;DR
# comparisons (worker), DICES (rater_id), and on platforms for crowd work.
USERS: Final = tuple(
    "user_id user annotator_id annotator worker_id worker rater_id rater participant_id participant"
    " labeler_id labeler labeller_id labeller crowdworker_id respondent_id respondent subject_id person_id"
    " user_name username uid prolific_id prolific_pid annotator_name worker_name rater_name user_hash".split()
)
MODELS: Final = NameSets(_two("model generator id response_id output_id"))  # a label may name one


@lru_cache(maxsize=4096)  # all columns are compared with the same few hundred names
def plain_name(name: str) -> str:
    """Return a column's name in snake case: "Chosen Response" and "chosenResponse" give "chosen_response"."""
    words = _WORD_START.sub("_", name.strip())
    return _BETWEEN_WORDS.sub("_", words).lower()


_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z][a-z])")
_BETWEEN_WORDS = re.compile(r"[\s_-]+")


# Roles whose column may be missing in the first rows: role -> usual names of the column.
LATER: Final = {
    "id": ("id",),
    "user": USERS,
    "system": SYSTEMS,
    "tools": ("tools", "functions"),
    "history": HISTORIES,
    "input": ("input",),
}
OF_ANY_NAME: Final = ("system", "user")  # merged data has several columns for these roles
ASKED: Final = ("instruction", "query", "question")  # a "history" may belong to such a prompt
QUESTIONS: Final = ("prompt", "user_prompt", *ASKED)  # or to such a one, if the first rows have it
_THIRD_RESPONSES = tuple(f"{thing}_{third}" for thing in THINGS.split() for third in "23c")
CHOICE_NAMES: Final = frozenset(
    map(plain_name, chain(*PAIRS, *TWO, *ONE_HOT, LABELS, _THIRD_RESPONSES))
)
# A new column in a later row changes how the row is read if it has one of these names.
NAMES_IN_LATER_ROWS: Final = CHOICE_NAMES.union(*LATER.values())

DATA_SETS: Final = {
    "SHP": "history human_ref_A human_ref_B labels",
    "PKU-SafeRLHF": "prompt response_0 response_1 better_response_id",
    "AlpacaFarm": "instruction input output_1 output_2 preference",
    "LLMBar": "input output_1 output_2 label",
    "HelpSteer2-Preference": "prompt response_1 response_2 preference_strength",
    "HelpSteer3": "context response1 response2 overall_preference",
    "Arena 55k": "prompt response_a response_b winner_model_a winner_model_b winner_tie",
    "MT-bench": "conversation_a conversation_b winner turn",
    "Chatbot Arena": "conversation_a conversation_b winner",
    "MultiPref": "text completion_a completion_b normal_worker_annotations",
    "TL;DR comparisons": "info summaries choice",
    "WebGPT": "question answer_0 answer_1 score_0 score_1",
    "responses a and b": "prompt response_a response_b",
}
