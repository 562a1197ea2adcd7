"""Which emoji are variants of one drawing, and must land on the same side of a split."""

import re

SKIN_TONES = {
    "1f3fb": "light skin tone",
    "1f3fc": "medium-light skin tone",
    "1f3fd": "medium skin tone",
    "1f3fe": "medium-dark skin tone",
    "1f3ff": "dark skin tone",
}
# People of any gender are drawn alike, as are the families and couples made of them.
_PERSON = {"1f468": "1f9d1", "1f469": "1f9d1", "1f466": "1f9d2", "1f467": "1f9d2"}
# Other codepoints for one drawing: sequences of people (as `base_codepoints` writes them), and pictures that at least
# one style has twice, found by comparing all of them (mean squared difference below 15 of 65,025 at 24 pixels).
_SAME_DRAWING = {
    "1f46b": "1f9d1-200d-1f91d-200d-1f9d1",  # holding hands
    "1f46c": "1f9d1-200d-1f91d-200d-1f9d1",
    "1f46d": "1f9d1-200d-1f91d-200d-1f9d1",
    "1f48f": "1f9d1-200d-2764-200d-1f48b-200d-1f9d1",  # kiss
    "1f491": "1f9d1-200d-2764-200d-1f9d1",  # couple with heart
    "1faf1-200d-1faf2": "1f91d",  # handshake
    "1f46a": "1f9d1-200d-1f9d1-200d-1f9d2",  # family
    "1f471": "1f9d1",  # blond person
    "1f64e": "1f64d",  # pouting, frowning
    "1f63a": "1f431",  # cat
    "26c4": "2603",  # snowman
    "1f1e7-1f1fb": "1f1f3-1f1f4",  # flags: Bouvet Island, Norway
    "1f1f8-1f1ef": "1f1f3-1f1f4",  # Svalbard and Jan Mayen
    "1f1e8-1f1f5": "1f1eb-1f1f7",  # Clipperton Island, France
    "1f1f2-1f1eb": "1f1eb-1f1f7",  # St. Martin
    "1f1e9-1f1ec": "1f1ee-1f1f4",  # Diego Garcia, British Indian Ocean Territory
    "1f1ea-1f1e6": "1f1ea-1f1f8",  # Ceuta and Melilla, Spain
    "1f1ed-1f1f2": "1f1e6-1f1fa",  # Heard and McDonald Islands, Australia
    "1f1fa-1f1f2": "1f1fa-1f1f8",  # U.S. Outlying Islands, United States
}


def plain_codepoints(codepoints: str) -> str:
    """Lower case, without variation selectors, which say "as a picture" and which the packages write or leave out."""
    return "-".join(part for part in codepoints.lower().split("-") if part != "fe0f")


def base_codepoints(codepoints: str) -> str:
    """The drawing that an emoji is a variant of: equal for all rows that would give each other away across a split.

    Most of the set are variants: each hand in six skin tones, each profession as woman, man and person, each in two
    styles. Left out are variation selectors, skin tones, a gender sign or a change of direction at the end; man and
    woman become person, boy and girl child; couples, and flags drawn alike, have one spelling; numbers have at least
    four digits, since the packages disagree on zeros. A skin tone or a gender sign that stands alone is an emoji of
    its own and stays.

    Args:
        codepoints: hexadecimal codepoints joined by `-`, as in the column of that name.
    """
    parts = [part.zfill(4) for part in plain_codepoints(codepoints).split("-")]
    parts = [part for index, part in enumerate(parts) if index == 0 or part not in SKIN_TONES]
    base = re.sub(r"(-200d-(2640|2642|27a1))+$", "", "-".join(_PERSON.get(part, part) for part in parts))
    return _SAME_DRAWING.get(base, base)
