"""Find protected attributes in a persona, by words and by the words around them.

Protected attributes are age, gender, race, nationality, religion, politics, sexual orientation, disability,
health, family status and income. The words are in `texts/protected_words.txt`; names of countries and peoples
come from the package countryinfo. Most words are ambiguous: "Nigerian" describes a person in "a Nigerian
nurse", but food in "Nigerian stews". Such a word counts only beside a word for a person, or if the sentence
says what somebody *is*.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

_PUNCTUATION = re.compile(r"[,;:.!?()\[\]\u2013\u2014]+")
_NOT_WORD = re.compile(r"[^\w,]+")
_POLISH = re.compile(r"\bPolish\b")  # the nationality; "polish" is what an editor adds
_COUNTRIES_THAT_ARE_WORDS = frozenset({"chad", "jersey", "georgia", "jordan", "turkey", "guernsey"})
# countryinfo has these in place of the name of a people.
_NO_PEOPLE = frozenset({"island", "djibouti", "gibraltar", "mcdonald"})

# In the patterns, an upper-case word stands for a group of words: one of these, a list of the file, or
# COUNTRY for names of countries. NATIONAL replaces each people's name in the text before it is searched.
_WORD_GROUPS = {
    "DECADE": r"(?:twenties|thirties|forties|fifties|sixties|seventies|eighties|nineties"
    r"|20s|30s|40s|50s|60s|70s|80s|90s)",
    "POLITICAL": r"(?:conservatives?|liberals?|progressives?|moderates?|radicals?|left|right)",
    "AGED": r"(?:young|younger|old|older|retired)",
}
_GROUPS = {
    "IS": r"(?:is|are|am|was|being|identif\w+ as|openly|proudly|physically|severely|politically|socially"
    r"|fiscally|as|leans?|leaning)",
    "END": r"(?= ,|$| (?:and|or|but|who|whose|prefers?|likes?|wants?|needs?|enjoys?|values?)\b)",
    "NUMBER": r"(?:\d+|one|two|three|four|five|six|several|young|small|little|grown)",
    **_WORD_GROUPS,
}
_PATTERNS = (
    # Age.
    r"AGED (?:\w+ )?PEOPLE(?<!young adult)(?<!young adults)",
    r"young adults?(?! (?:fiction|novels?|books?|series|literature|section))",
    r"(?:very|quite|IS|an?) (?:young|retired)END",
    r"IS (?:older|old)END",
    r"\d+ years? olds?(?! \w*(?:code|codebase|laptop|car|house|computer|system|bug|wh?isky|wine|book|phone))",
    r"(?:aged?|over|under|past|above|turning|nearly) \d\d(?: years| and)?END",
    r"(?:his|her|their|my) (?:early |mid |late )?DECADE",
    r"(?:IS|in|an?) (?:early|mid|late) DECADE",
    r"(?:middle|college|school|working) aged?",
    r"(?:twenty|thirty|forty|fifty|sixty) something",
    r"gen(?:eration)? (?:x|y|z|alpha)|(?:silent|older|younger|greatest) generation",
    r"baby boom\w*",
    r"senior (?:citizens?|adults?|living|couple)|retirement age",
    r"an? (?:senior|minor)END",
    r"high school(?:er|ers| students?| kids?)",
    r"(?:an?|little|young|small) (?:child|kid)(?! like|'s| class| node| process)END",
    # Gender.
    r"(?<!con )(?<!straw )(?<!middle )(?<!best )(?:man|men)(?! (?:made|pages?|hours?|s|led|owned)\b)",
    r"(?:woman|women)(?! (?:s|led|owned)\b)",
    r"IS (?:feminine|masculine)END",
    r"(?:male|female|males|females)(?! (?:connectors?|plugs?|sockets?|threads?|voices?|ends?))"
    r"(?! and female (?:connectors?|plugs?|sockets?))",
    r"(?:boys?|girls?)(?! (?:scouts?|bands?|groups?))",
    r"(?:they them|she her|he him|preferred|gender) pronouns",
    r"non binary",
    # Race, ethnicity and nationality.
    r"(?<!(?:\w\w\w)and )(?:black|white|brown) (?:\w+ )?(?:PEOPLE|american|southerner|community|heritage)",
    r"IS (?:black|white|brown)(?! and (?:white|black))END",
    r"(?:people|person|man|woman|women|men|writer|student)s? of (?:color|colour)",
    r"mixed (?:race|heritage|ethnic\w*)",
    r"(?:ethnic|racial|religious|sexual|visible) (?:minority|minorities)",
    r"minority (?:group|background|community|student|family|status)",
    r"native NATIONAL",
    r"ethnic (?:PEOPLE|BELONGING)",
    r"(?:an?|proud) native of",
    r"NATIONAL (?:PEOPLE|BELONGING)",
    r"NATIONAL (?!THINGS)\w+ (?:PEOPLE)",
    r"(?:IS|an?|the|proud|half|part|originally|ethnic|ethnically|young|born) NATIONAL"
    r"(?= ,|$| (?:and|or|but|who|whose|with|by|living|in|from|at|based|born|that|prefers?|wants?|likes?)\b)",
    r"NATIONAL (?:born|speaking|NATIONAL)|(?:middle eastern|from the middle east)",
    r"(?:IS|an?|the) (?:north|south|east|west|central|southeast|pacific|eastern|western) NATIONAL"
    r"(?= ,|$| (?:and|or|who)\b)",
    r"(?:is|someone|people|person|PEOPLE|originally|comes?|came|hails?|moved|fled|immigrated|emigrated) from"
    r" (?:the )?COUNTRY",
    r"(?:born|raised|grew up|citizen of|native of|roots in|family in|grown up)(?: in)? (?:the )?COUNTRY",
    r"(?:foreign|undocumented) (?:PEOPLE)",
    r"first generation (?:NATIONAL|immigrant|PEOPLE)",
    r"asylum seekers?",
    # Religion.
    r"(?:IS|an?) (?:religious|spiritual|agnostic|secular|orthodox)END",
    r"(?:religious|spiritual|secular|orthodox) (?:PEOPLE|BELONGING|seeker|leader)",
    r"(?:attend\w*|goes to|going to|went to|active in|member of|involved in|serves at|leads)"
    r" (?:\w+ ){0,2}(?:church|synagogue|mosque|temple|mass)",
    r"church (?:member|leader|elder|volunteer|going|community|group)",
    r"(?:the|reads?|from|study) bible(?! of)",
    r"bible (?:study|verses?|reader|believing)",
    r"(?<!oh my )god(?! (?:mode|object|class))",
    r"(?:strong|deep|devout|shared|their|his|her|personal|(?:PEOPLE) of) faith(?! in\b)",
    r"faith based|(?<!good )faith and (?:family|values|prayer)|rooted in faith",
    r"(?:an?|born again|devoted|faithful) believers?(?! in\b| that\b)",
    r"(?:keeps?|keeping|eats?) (?:kosher|halal)",
    # Politics.
    r"POLITICAL (?:PEOPLE|views?|beliefs?|politics|activist|party|voter|politician|candidate|christian)",
    r"(?:socially |politically |fiscally )(?:POLITICAL)",
    r"(?:conservative|traditional|liberal) values",
    r"(?:IS|an?|staunch|lifelong) (?:conservative|liberal)(?= ,|$| (?:and|or|but|who|whose)\b)",
    r"(?:a|an|staunch|lifelong) progressive(?= ,|$| who)|progressive and (?:politically|socially)",
    r"politically (?:engaged|active|right|left)",
    r"(?:left|right)(?: of)? (?:wing|wingers?|leaning|cent(?:er|re))",
    r"(?:leans?|leaning|far|alt|hard|political|religious|on the) (?:left|right)END",
    r"leans? POLITICAL",
    r"democratic (?:socialis\w+|party|voter)",
    r"(?:labor|labour|green|tory|national|democratic) (?:party|supporters?|members?)",
    r"(?:party|trump|biden|obama|clinton|sanders|putin|modi|brexit)"
    r" (?:supporters?|fans?|loyalists?)",
    r"supporters? of (?:\w+ ){0,3}(?:party|trump|biden|obama|brexit)",
    r"(?:pro life|pro choice|pro gun|anti abortion|anti immigra\w+|anti vaccine)",
    # Sexual orientation.
    r"straight (?:PEOPLE)",
    r"(?:identif\w+ as|sexually) straight",
    r"same sex",
    r"asexual(?! reproduction)",
    r"(?:came|coming) out (?:as|to)",
    # Disability and health.
    r"(?:IS|an?|the|severely|partially|legally) disabled(?! (?:\w+(?:s|ed)|by|in|on)\b)",
    r"disabled (?:PEOPLE)",
    r"(?<!tone )(?<!a )deaf|(?:an?|the|IS) deaf(?! ear)",
    r"(?<!double )(?<!single )(?<!snow )blind(?! (?:tast\w*|spots?|tests?|stud\w+|reviews?|faith|trust|luck"
    r"|dates?|alley|audition\w*|optimism|peer|box|corner|trials?|to\b))",
    r"hard of hearing|hearing (?:impaired|loss|aids?)|(?:visually|hearing|cognitively|mobility) impair\w+",
    r"(?:chronic|chronically) (?:ill|pain|illness\w*|fatigue|conditions?|diseases?|migraines?)",
    r"mental (?:illness|health (?:conditions?|issues|problems|struggles))",
    r"(?:heart|medical|health|skin|lung) (?:condition|disease|problems?)",
    r"down syndrome|cerebral palsy|learning difficult\w+|special needs|spectrum (?:disorder|condition)",
    r"(?:diagnosed with|suffers? from|suffering from|in remission|terminally ill)",
    r"(?:is|an?|with|has) bipolar(?:END| disorder)",
    r"(?:IS|an?|clinically) depressedEND|mentally ill|partially sighted|stutters?END",
    r"(?:with|has|had|have|having|battl\w+|fight\w+|managing|manages|beat|surviv\w+|recovering from|against"
    r"|overc[ao]m\w+|despite|living with|struggl\w+ with)"
    r" (?:(?!in\b|of\b|about\b|to\b|for\b)\w+ ){0,2}CONDITION"
    r"(?! (?:research|care|data|studies|drugs?|prevention|science|awareness|medicine))",
    r"CONDITION (?:survivors?|sufferers?|patients?|diagnosis|positive)",
    r"(?:military|war|army|combat|disabled) veterans?|a veteranEND",
    r"(?:recovering|former|drug|an?) (?:addicts?|alcoholic)(?! (?:drinks?|beverages?))",
    # Family.
    r"mothers?(?! (?:tongues?|nature|boards?|lode|ships?|of all|of every)\b)",
    r"fathers?(?! of (?!two|three|four|five|six|\d|an?\b))",
    r"parents?(?! (?:and child|class\w*|compan\w+|nodes?|tables?|director\w+|process\w*|folders?|themes?"
    r"|elements?|components?))",
    r"pregnant(?! pause)|menopausal",
    r"single (?:PEOPLE)(?<!user)(?<!reader)(?<!author)(?<!developer)(?<!person)",
    r"is single(?= and| ,|$)",
    r"(?:IS|happily|recently|newly|an?) married(?! to (?:the|an?|this|that|one)\b)|engaged to be",
    r"married (?:PEOPLE|with|for)",
    r"(?:an?|lifelong|eligible|confirmed) bachelor(?! (?:s|degree|of)\b)",
    r"(?:has|have|with|raising|of) (?:\w+ )?NUMBER (?:\w+ )?(?:kids|children|daughters|sons)",
    r"(?:has|raising|expecting) an? (?:\w+ )?(?:child|kid|baby|daughter|son|toddler)",
    r"only child",
    r"stay at home (?:PEOPLE)",
    # Income and class.
    r"(?:IS|very|quite) (?:poor|rich)END",
    r"(?:poor|rich) (?:PEOPLE|household|background|neighbou?rhood)",
    r"(?:low|high|middle|lower|upper|fixed) (?:incomes?|wage)(?! (?:potential|tax|growth|ratio|stream))",
    r"(?:working|middle|upper|lower|under) class(?:es)?\b",
    r"(?:in|poverty|below the|of) poverty|poverty (?:line|level)",
    r"(?:on|welfare|food) (?:welfare|recipients?|stamps)|on (?:\w+ )?benefits",
    r"blue collar|well off|well to do|paycheck to paycheck",
    r"(?:IS|an?|economically|socially) (?:privileged|disadvantaged)",
)


class _Lexicon(NamedTuple):
    always: frozenset[str]
    peoples: frozenset[str]  # of a country or region: "nigerian", "kurdish"
    places: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]
    patterns_of: dict[str, list[int]]  # word -> places of patterns whose matches may hold it


def is_protected(trait: str, preference: str = "") -> bool:
    """Whether either phrase names a protected attribute.

    Args:
        trait: completes "The user is …", or is a whole sentence.
        preference: completes "and prefers …".
    """
    # The verb tells "is black", which describes a person, from "prefers black coffee".
    return _says_it("is", trait) or _says_it("prefers", preference)


def is_place(name: str) -> bool:
    """Whether a name is that of a country, a capital or a province, in any case of letters.

    A country whose name has another meaning (Turkey, Jordan) counts only if a province has this name
    (Georgia).
    """
    return name.lower() in _lexicon().places


@cache
def trigger_words() -> frozenset[str]:
    """Return words in lower case, of which each phrase with a protected attribute holds at least one."""
    return _lexicon().always | _lexicon().patterns_of.keys()


def _says_it(verb: str, phrase: str) -> bool:
    lexicon = _lexicon()
    words = _NOT_WORD.sub(" ", _PUNCTUATION.sub(" , ", phrase.lower())).split()
    telling = [word for word in words if word in lexicon.patterns_of]
    if not lexicon.always.isdisjoint(words):
        return True
    if not telling:
        return False
    polish = _POLISH.search(phrase) is not None
    tagged = [
        "NATIONAL" if word in lexicon.peoples and (polish or word != "polish") else word
        for word in words
    ]
    text = " ".join([verb, *tagged])
    # Each pattern searches the whole text, so a word that is repeated must not search it again.
    places = {place for word in telling for place in lexicon.patterns_of[word]}
    return any(lexicon.patterns[place].search(text) for place in places)


@cache
def _lexicon() -> _Lexicon:
    words = _read_words()
    countries, peoples, places = _countries()
    peoples = (peoples | words["demonyms"]) - _NO_PEOPLE
    inside = {
        "NATIONAL": peoples,
        "COUNTRY": frozenset(name.split()[-1] for name in countries),
        "CONDITION": words["conditions"],
    }
    lists = {
        "PEOPLE": _any_of(words["people"]),
        "BELONGING": _any_of(words["belonging"]),
        "THINGS": _any_of(words["topics"]),
        "CONDITION": _any_of(words["conditions"]),
        "COUNTRY": _any_of(countries),
        **_GROUPS,
    }
    patterns_of: dict[str, list[int]] = {}
    for place, written in enumerate(_PATTERNS):
        literal = set(re.findall("[a-z]+", _fill(written, _WORD_GROUPS).replace("s?", "s")))
        literal |= {word.removesuffix("s") for word in literal}
        named = [inside[group] for group in inside if group in written]
        for word in (literal & words["ambiguous"]).union(*named):
            patterns_of.setdefault(word, []).append(place)
    patterns = tuple(re.compile(rf"\b(?:{_fill(one, lists)})(?!\w)") for one in _PATTERNS)
    return _Lexicon(words["always"], peoples, places, patterns, patterns_of)


def _fill(pattern: str, groups: Mapping[str, str]) -> str:
    """Replace the name of each group in a pattern by the group's own pattern."""
    return re.sub("|".join(groups), lambda found: groups[found[0]], pattern)


def _read_words() -> dict[str, frozenset[str]]:
    """Read the file of words: name of a section -> its words."""
    text = (resources.files(__package__) / "texts" / "protected_words.txt").read_text("utf-8")
    sections = re.findall(r"^\[(\w+)\]\n([^\[]*)", text, re.MULTILINE)
    return {name: frozenset(body.split()) for name, body in sections}


def _countries() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Return three sets of names in lower case: countries, peoples, and places.

    A people's name is its last word, in singular and plural. Places are countries, capitals and provinces.
    """
    names: set[str] = set()
    peoples: set[str] = set()
    places: set[str] = set()
    for country in _country_records():
        names.add(re.split("[,(]", country["name"])[0].strip().lower())
        demonyms = re.split("[,/]", (country.get("demonym") or "").lower())
        peoples.update(demonym.split()[-1] for demonym in demonyms if demonym.strip())
        around = [country.get("capital"), *(country.get("provinces") or [])]
        places.update(place.lower() for place in around if isinstance(place, str))
    names -= _COUNTRIES_THAT_ARE_WORDS
    plurals = {f"{name}s" for name in peoples}
    return frozenset(names), frozenset(peoples | plurals), frozenset(places | names)


def _country_records() -> Iterator[dict[str, Any]]:
    """Yield the countries of the package countryinfo.

    The package's functions would keep all countries in memory: 17,000 objects for each garbage collection.
    """
    for folder in ("data", "data_no_iso"):
        for file in (resources.files("countryinfo") / folder).iterdir():
            if file.name.endswith(".json"):
                country = json.loads(file.read_text("utf-8"))
                if country.get("name"):
                    yield country


def _any_of(words: frozenset[str]) -> str:
    """Make a pattern that matches any one of these words, as a whole word."""
    return rf"(?:{'|'.join(map(re.escape, sorted(words, reverse=True)))})\b"
