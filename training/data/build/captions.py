"""Captions of avatars: three to eight of their attributes in plain English."""

import random

from brickwork.training.data.build.attributes import Drawing, table

LISTED = ("hair", "skin", "glasses", "beard", "hat", "earrings", "clothes", "body")
COLOUR_OF = {"hair": "hair_colour", "clothes": "clothes_colour"}
TEMPLATES = (
    "{a} {mood} {style} {noun}{with_}{on}",
    "{a} {style} {noun}{with_}{on}{looking}",
    "{style} {noun}, {mood_}{list}{on}",
    "{noun} in the {style} style{looking}{with_}{on}",
    "{on_first}{a} {mood} {noun} in {style} style{with_}",
)
GROUNDS = (" on {a} ground", " on {a} background", " against {v}")
NUMBERS = ("an avatar", "two avatars", "three avatars", "four avatars", "five avatars")


def caption(drawing: Drawing, rng: random.Random) -> str:
    """A caption in which every word is true of the drawing; the style is always named."""
    has = _has(drawing)
    names = [name for name in has if has[name] != "none" or rng.random() < 0.15]
    told = set(rng.sample(names, min(len(names), rng.randint(2, 7))))  # and the style
    parts = _parts(has, told)
    rng.shuffle(parts)
    nouns = table()["nouns"]
    ground = has["ground"] if "ground" in told else ""
    on = rng.choice(GROUNDS).format(a=_a(ground), v=ground) if ground else ""
    mood = has["mood"] if "mood" in told else ""
    text = rng.choice(TEMPLATES).format(
        a="{a}",
        mood=mood,
        mood_=f"{mood}, " if mood else "",
        looking=f", looking {mood}," if mood else "",
        style=drawing.style.replace("-", " "),
        noun=rng.choice(nouns.get(drawing.style, nouns[""])),
        with_=f" with {_listed(parts)}" if parts else "",
        list=", ".join(parts),
        on=on,
        on_first=f"{on.strip()}, " if on else "",
    )
    before, article, after = text.partition("{a}")
    text = f"{before}{_a(after.strip())}" if article else text
    return " ".join(text.split()).replace(" ,", ",").replace(",,", ",").strip(" ,")


def phrase(drawing: Drawing, rng: random.Random) -> str:
    """An avatar in a few words, one among several: style, mood, one more ("a sad micah person with a bob")."""
    has = _has(drawing)
    parts = _parts(has, {name for name, value in has.items() if value != "none"})
    nouns = table()["nouns"]
    noun = rng.choice(nouns.get(drawing.style, nouns[""]))
    words = [has.get("mood", ""), drawing.style.replace("-", " "), noun]
    words += ["with", rng.choice(parts)] if parts else []
    return _a(" ".join(words).strip())


def scene_caption(phrases: list[str], ground: str, rng: random.Random) -> str:
    """What is to be seen in a scene: how many avatars, on which ground, and each by its `phrase`."""
    on = rng.choice(GROUNDS).format(a=_a(ground), v=ground)
    return f"{NUMBERS[len(phrases) - 1]}{on}: {_listed(phrases)}" if len(phrases) > 1 else f"{phrases[0]}{on}"


def _has(drawing: Drawing) -> dict[str, str]:
    """The attributes that can be seen."""
    has = {name: value for name, value in drawing.attributes.items() if value is not None}
    if has.get("hair") == "bald":
        has.pop("hair_colour", None)
    return has


def _parts(has: dict[str, str], told: set[str]) -> list[str]:
    """The told attributes as phrases; a colour stands with what it is the colour of, where that is told too."""
    parts = []
    for name in LISTED:
        colour = COLOUR_OF.get(name)
        shown = name if name in told else colour if colour in told else None
        if shown:
            parts.append(_phrase(shown, has[shown], has.get(colour) if colour in told else None))
    return parts


def _listed(parts: list[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts)


def _phrase(name: str, value: str, colour: str | None) -> str:
    phrases = table()["phrases"][name]
    phrase = phrases if isinstance(phrases, str) else phrases.get(value, phrases.get("", value))
    text = " ".join(phrase.format(v=value, c=colour or "").split())
    return _a(text[2:]) if text.startswith("a ") else text


def _a(text: str) -> str:
    return f"{'an' if text[:1] in 'aeio' else 'a'} {text}"
