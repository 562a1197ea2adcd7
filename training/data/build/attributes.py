"""What an avatar has: attributes drawn in common words, and the options of its style that show them."""

import fnmatch
import hashlib
import random
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

ATTRIBUTES = (
    "mood",
    "hair",
    "hair_colour",
    "skin",
    "glasses",
    "beard",
    "hat",
    "earrings",
    "clothes",
    "clothes_colour",
    "body",
    "ground",
)
COMBINED = ("mood", "hair_colour", "body", "clothes_colour", "ground")  # a combination: the first two that it has
HELD_OUT = 0.06  # share of the combinations


@cache
def table() -> dict:
    """`avatars.yaml`."""
    import yaml

    return yaml.safe_load(files(__package__).joinpath("avatars.yaml").read_text(encoding="utf-8"))


def values_of(style: str, attribute: str) -> dict[str, dict]:
    """The values that an attribute has in a style, with the options that show each."""
    entry = table()["styles"][style].get(attribute, {})
    if isinstance(entry, dict):
        return entry
    options = [entry] if isinstance(entry, str) else entry
    return {name: dict.fromkeys(options, colour) for name, colour in table()["palettes"][attribute].items()}


@dataclass
class Drawing:
    """One picture to be: `options` as `createAvatar` takes them, `attributes` in the order of `ATTRIBUTES`."""

    style: str
    attributes: dict[str, str | None]
    options: dict

    @property
    def combination(self) -> str:
        named = [f"{name} {self.attributes[name]}" for name in COMBINED if self.attributes[name]]
        return ", ".join([self.style, *named[:2]])

    @property
    def held_out(self) -> bool:
        """Whether the combination is kept out of training, whatever the seed."""
        return int(hashlib.sha256(self.combination.encode()).hexdigest()[:8], 16) < HELD_OUT * 2**32


def draw(style: str, described: dict, rng: random.Random, where: dict[str, list[str]] | None = None) -> Drawing:
    """One drawing.

    Args:
        described: the style's options, `{option: {"values": …, "initial": …}}`.
        where: the values to draw from, by attribute; None for all.
    """
    entry = table()["styles"][style]
    choices, drawn = dict(entry.get("always", {})), {}
    for attribute in entry:
        values = values_of(style, attribute) if attribute != "always" else {}
        names = [name for name in values if name in (where or {}).get(attribute, values)]
        if not names:
            continue
        shares = [1 - table()["none_share"]] * len(names)
        if names[0] == "none" and len(names) > 1:
            shares = [table()["none_share"], *[(1 - table()["none_share"]) / (len(names) - 1)] * (len(names) - 1)]
        drawn[attribute] = rng.choices(names, shares)[0]
        for option, choice in values[drawn[attribute]].items():
            if option == "sets":
                drawn.update({name: value for name, value in choice.items() if name in drawn})
            else:
                choices[option] = choice
    return Drawing(style, {name: drawn.get(name) for name in ATTRIBUTES}, _options(described, choices, rng))


def _options(described: dict, choices: dict, rng: random.Random) -> dict:
    """One value of every option: of `choices`, which are patterns; of all values where a part is needed."""
    options = {}
    for option, known in sorted(described.items()):
        optional = f"{option}Probability" in described
        if option not in choices:
            if optional:
                options[f"{option}Probability"] = 0
            elif isinstance(known["initial"], list) and known["initial"]:
                options[option] = [rng.choice(known["initial"])]
            continue
        wanted = choices[option] if isinstance(choices[option], list) else [choices[option]]
        found = [one for pattern in wanted for one in expand(str(pattern), known["values"])]
        if found:
            options[option] = [rng.choice(found)]
        if optional:
            options[f"{option}Probability"] = 100 if found else 0
    colour = choices.get("backgroundColor")
    shared = {"backgroundColor": [colour]} if colour else {}
    return options | shared | {name: choices[name] for name in ("scale", "translateY") if name in choices}


def expand(pattern: str, values: list[str] | None) -> list[str]:
    """The values that a pattern stands for; a colour stands for itself.

    Raises `ValueError` for a pattern without any: the style is not the one that the table was written for.
    """
    found = fnmatch.filter(values or [], pattern) or ([pattern] if re.fullmatch("[0-9a-f]{6}", pattern) else [])
    if not found:
        raise ValueError(f"no value of the style is like {pattern!r}; it has {', '.join(values or [])}")
    return found
