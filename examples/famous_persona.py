"""A persona for each person of FamousPersona, and the prefixes that it is compared with.

    python examples/famous_persona.py                                     # three invented people
    python examples/famous_persona.py zilu-peter-tang/famous-persona MODEL   # the published data

MODEL is a litellm model string; without one, the embedded model writes the personas. The scorer counts the
words that response and prefix share, so that nothing is downloaded: use a `pi.Likelihood(…)` as SCORER for
real results. At the end one axis is left out at a time: people get examples of people on other axes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import personainfer as pi
from personainfer.simulation import read_famous_persona
from personainfer.tailoring import words
from personainfer.users import Prefix


def shared_words(conversations: list[tuple[pi.Message, ...]], responses: list[str]) -> list[float]:
    """The share of the words of a response that the conversation has."""
    scores = []
    for turns, response in zip(conversations, responses, strict=True):
        known = {word for turn in turns for word in words(turn.content)}
        said = words(response)
        scores.append(sum(word in known for word in said) / max(len(said), 1))
    return scores


SCORER = shared_words
SMALL = Path(__file__).parent / "data" / "famous_persona"


def main(source: str | Path = SMALL, model: str = "local", **options: str) -> None:
    train = read_famous_persona(source, split="train")
    test = read_famous_persona(source, split="test")
    # No persona is tested on a choice that it was made from.
    seen = {(one.user, one.prompt, one.chosen) for one in train.preferences}
    asked = [one for one in test.preferences if (one.user, one.prompt, one.chosen) not in seen]
    print(f"{len(train.users)} people, {len(train)} choices for training, {len(asked)} for testing")

    found = pi.infer_user_personas(train.preferences, model, pairs_per_user=4, **options)  # type: ignore[arg-type]
    print(found)
    for persona in list(found.personas.values())[:3]:
        print(f"\n{persona.user}, from {persona.pairs} choices:\n{persona}")

    prefixes = {
        "none": pi.persona_prefix("none"),
        "tag": pi.persona_prefix("tag"),
        "name": pi.persona_prefix("name"),
        "few-shot": pi.persona_prefix("few-shot", history=train.preferences, retrieve="bm25"),
    }
    if found.personas:
        prefixes["persona"] = pi.persona_prefix("persona", personas=found)
    kinds = test.questions or None
    print(f"\n{pi.evaluate_prefixes(prefixes, asked, SCORER, questions=kinds)}")
    if "axis" in test.groups:

        def others(trained: tuple[str, ...]) -> Prefix:
            """Examples of the people on the other axes, for everybody."""
            neighbours = {user: [one for one in trained if one != user] for user in test.users}
            return pi.persona_prefix("few-shot", history=train.preferences, neighbours=neighbours)

        unseen = pi.evaluate_prefixes(
            {"others": others}, asked, SCORER, folds="axis", groups=test.groups
        )
        print(f"\nOne axis left out at a time:\n{unseen}")
    one = next((c for c in asked if c.user in found.personas), asked[0])
    print(f"\nBefore {one.prompt!r}, for {one.user}:")
    for kind, prefix in prefixes.items():
        print(f"\n[{kind}]\n{prefix.text(one.user or '', one.prompt) or '(nothing)'}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
