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


def caption(drawing: Drawing, rng: random.Random) -> str:
    """A caption in which every word is true of the drawing; the style is always named."""
    has = {name: value for name, value in drawing.attributes.items() if value is not None}
    if has.get("hair") == "bald":
        has.pop("hair_colour", None)
    names = [name for name in has if has[name] != "none" or rng.random() < 0.15]
    told = set(rng.sample(names, min(len(names), rng.randint(2, 7))))  # and the style
    parts = []
    for name in LISTED:
        colour = COLOUR_OF.get(name)
        shown = name if name in told else colour if colour in told else None
        if shown:
            parts.append(_phrase(shown, has[shown], has.get(colour) if colour in told else None))
    rng.shuffle(parts)
    nouns = table()["nouns"]
    ground = has["ground"] if "ground" in told else ""
    on = (
        rng.choice((f" on {_a(ground)} ground", f" on {_a(ground)} background", f" against {ground}"))
        if ground
        else ""
    )
    mood = has["mood"] if "mood" in told else ""
    listed = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts)
    text = rng.choice(TEMPLATES).format(
        a="{a}",
        mood=mood,
        mood_=f"{mood}, " if mood else "",
        looking=f", looking {mood}," if mood else "",
        style=drawing.style.replace("-", " "),
        noun=rng.choice(nouns.get(drawing.style, nouns[""])),
        with_=f" with {listed}" if listed else "",
        list=", ".join(parts),
        on=on,
        on_first=f"{on.strip()}, " if on else "",
    )
    before, article, after = text.partition("{a}")
    text = f"{before}{_a(after.strip())}" if article else text
    return " ".join(text.split()).replace(" ,", ",").replace(",,", ",").strip(" ,")


def _phrase(name: str, value: str, colour: str | None) -> str:
    phrases = table()["phrases"][name]
    phrase = phrases if isinstance(phrases, str) else phrases.get(value, phrases.get("", value))
    text = " ".join(phrase.format(v=value, c=colour or "").split())
    return _a(text[2:]) if text.startswith("a ") else text


def _a(text: str) -> str:
    return f"{'an' if text[:1] in 'aeio' else 'a'} {text}"
