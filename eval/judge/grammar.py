"""Requirements out of a caption: objects joined by words of position, each with its number and its colour.

    caption = [a photo of] phrase {joint phrase}        joint = left of | right of | above | below | and | with | , | …
    phrase  = [a | an | the | no | one … ten | 1 …] {word} [colour] {word} noun

What is not understood belongs to the object's name, unless names are known: then a phrase stands for the known name
that it ends in. Joints without a position of their own (`on`, `beside`, …) join, and nothing more is asked of them.
"""

import re
from collections.abc import Sequence

from brickwork.errors import advice, shown
from brickwork.eval.judge.requirements import COLOURS, Clause, Requirements

_NUMBERS = {word: value for value, word in enumerate("no one two three four five six seven eight nine ten".split())}
_NUMBERS |= {"a": 1, "an": 1, "the": 1, "some": 1, "zero": 0}
_EXACT = {word for word in _NUMBERS if word not in ("a", "an", "the", "some")}
_RELATIONS = {
    "left of": ("to the left of", "on the left of", "left of"),
    "right of": ("to the right of", "on the right of", "right of"),
    "above": ("above", "over", "on top of"),
    "below": ("underneath", "beneath", "below", "under"),
}
_JOINTS = ("next to", "in front of", "together with", "and", "with", "beside", "near", "behind", "on", "in", "holding")
_RELATION_OF = {words: relation for relation, all_words in _RELATIONS.items() for words in all_words}
_JOINT = re.compile(
    r"\s*,\s*(?:and\s+)?|\s+(" + "|".join(sorted([*_RELATION_OF, *_JOINTS], key=len, reverse=True)) + r")\s+"
)
_OPENING = re.compile(
    r"^(?:an?\s+|the\s+)?(?:\w+\s+)?"
    r"(?:photo|photograph|picture|image|drawing|painting|illustration|render|icon) of(?:\s+|$)"
)
_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose",
    "feet": "foot", "teeth": "tooth", "knives": "knife", "leaves": "leaf", "wolves": "wolf", "sheep": "sheep",
    "buses": "bus", "cookies": "cookie",
}  # fmt: skip


def singular(word: str) -> str:
    """The last word of a name as one of it: `"teddy bears"` => `"teddy bear"`."""
    head, space, last = word.rpartition(" ")
    if last in _IRREGULAR:
        return head + space + _IRREGULAR[last]
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("shes", "sh"), ("ches", "ch")):
        if last.endswith(ending) and len(last) > len(ending) + 1:
            return head + space + last.removesuffix(ending) + instead
    return head + space + (last[:-1] if last.endswith("s") and last[-2:] not in ("ss", "us", "is") else last)


def _plurals(name: str) -> set[str]:
    """Spellings that stand for several of a name, GenEval's own among them (`"mouses"`)."""
    head, space, last = name.rpartition(" ")
    irregular = {head + space + plural for plural, one in _IRREGULAR.items() if one == last}
    return {name + "s", name + "es", name[:-1] + "ies", *irregular}


def read_caption(caption: str, names: Sequence[str] | None = None) -> Requirements:
    """What a caption asks for.

    An article asks for at least one; a number for exactly so many, as GenEval's counting does; `no` for none.

    Args:
        caption: in English.
        names: of the objects that can be asked for; `None` for any.

    Raises:
        ValueError: for a caption that names nothing that can be judged.
    """
    text = _OPENING.sub("", re.sub(r"\s+", " ", str(caption).casefold()).strip(" .!?;:"))
    parts = _JOINT.split(text)
    clauses = [_phrase(words, names) for words in parts[::2]]
    joints = [_RELATION_OF.get(joint) for joint in parts[1::2]]
    include, exclude, indices = [], [], {}

    def add(number: int) -> None:
        """Take a clause in, behind the one that it is relative to."""
        if number in indices or clauses[number] is None:
            return
        clause, exact = clauses[number]
        relation = joints[number] if number < len(joints) else None
        if relation is not None:
            add(number + 1)
        indices[number] = len(include)
        if clause.count:
            target = indices.get(number + 1) if relation is not None else None
            position = None if target is None else (relation, target)
            include.append(Clause(clause.name, clause.count, clause.colour, position))
        if exact:
            exclude.append(Clause(clause.name, clause.count + 1))

    for number in range(len(clauses)):
        add(number)
    if not include and not exclude:
        fix = "name objects." if names is None else advice(text, names, "known are")
        raise ValueError(f"`prompt` is {shown(caption)}, which names nothing that can be judged; {fix}")
    return Requirements(str(caption), tuple(include), tuple(exclude))


def _phrase(words: str, names: Sequence[str] | None) -> tuple[Clause, bool] | None:
    """The clause of one phrase, and whether its number is exact; `None` where it names no object."""
    tokens = words.split()
    count = exact = None
    if tokens and (tokens[0] in _NUMBERS or tokens[0].isdecimal()):
        first = tokens.pop(0)
        count, exact = _NUMBERS[first] if first in _NUMBERS else int(first), first in _EXACT or first.isdecimal()
    tokens = [re.sub(r"-colou?red$", "", token) for token in tokens]
    colours = [i for i, token in enumerate(tokens[:-1]) if token in COLOURS]
    colour = tokens.pop(colours[0]) if colours else None
    name = " ".join(tokens)
    if names is not None:
        name = _known_name(name, names)
        return None if name is None else (Clause(name, 1 if count is None else count, colour), bool(exact))
    several = singular(name)
    if not name or (count is None and colour is None and several == name):
        return None  # a bare word may be anything
    return Clause(several if count != 1 else name, 1 if count is None else count, colour), bool(exact)


def _known_name(phrase: str, names: Sequence[str]) -> str | None:
    """The longest known name that a phrase ends in, in the singular or plural."""
    for name in sorted(names, key=len, reverse=True):
        for spelling in (name.casefold(), *_plurals(name.casefold())):
            if phrase == spelling or phrase.endswith(" " + spelling):
                return name
    return None
