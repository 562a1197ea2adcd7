"""Whether avatars are what was asked for, attribute by attribute, in the eyes of the judge that ships.

What was asked is in the captions, in the words of `brickwork data build avatars`, or is the class of a picture.
"""

import re
from collections.abc import Mapping, Sequence

import torch

from brickwork.eval.extractors.attributes import WEIGHTS, AttributeJudge, accuracy, load_judge
from brickwork.eval.extractors.features import FIXED_BATCH
from brickwork.eval.metrics.reference import Reference
from brickwork.eval.metrics.registry import Given, register_metric
from brickwork.eval.report.results import Score, generation_of
from brickwork.eval.sets.pictures import ImageSet, Preparation, decoded_batches, open_image_set
from brickwork.files import file_digest

TITLE = "Attr-accuracy"
HAIRCUTS = ("mohawk", "bob", "ponytail", "braids", "afro")
# Where captions do not use the value's own word alone.
SPOKEN = {
    ("hair", "bald"): r"bald head",
    ("hair", "bun"): r"hair in a bun",
    ("hat", "flowers"): r"flowers in the hair",
    ("beard", "full"): r"full beard",
    ("glasses", "sunglasses"): r"sunglasses",
}


def asked_in(caption: str, attributes: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """What a caption asks for, by attribute; what it does not mention is left out.

    Args:
        caption: in the words of `brickwork data build avatars`.
        attributes: their values, as `AttributeJudge.attributes` has them.
    """
    patterns = {
        "glasses": r"{} glasses",
        "skin": r"{} skin",
        "body": r"{} body",
        "hair": r"{} (?:\w+ )?hair",
        "hair_colour": rf"{{}} (?:hair|{'|'.join(HAIRCUTS)})",
        "clothes_colour": rf"{{}} (?:clothes|{'|'.join(attributes.get('clothes', []))})",
        "ground": r"(?:against {0}|on an? {0} (?:ground|background))",
    }
    asked, text = {}, caption.lower().replace("-", " ")
    for attribute, values in attributes.items():
        for value in values:
            pattern = "{}" if value in HAIRCUTS else patterns.get(attribute, "{}")
            spoken = f"no {attribute}" if value == "none" else pattern.format(value)
            spoken = SPOKEN.get((attribute, value), spoken).replace("-", " ")
            before = "(?<!t )" if value == "shirt" else ""
            if re.search(rf"\b{before}{spoken}\b", text):
                asked[attribute] = value
    return asked


def asked_of(images: ImageSet, attributes: Mapping[str, Sequence[str]]) -> list[dict[str, str]] | None:
    """What each picture of a set was to show; `None` where the set does not tell.

    Captions come first; else classes, whose names are in the set, or in the record of `brickwork evaluate gen`.
    """
    if images.texts is not None:
        return [asked_in(text, attributes) for text in images.texts]
    names = (generation_of(images.source) or {}).get("class_names") or {}
    labels = [names.get(str(label), label) for label in images.labels or ()]
    styles = [{"style": label} if label in attributes["style"] else {} for label in labels]
    return styles if any(styles) else None


def named_by(judge: AttributeJudge, images: ImageSet, preparation: Preparation) -> list[dict[str, str]]:
    """The judge's word on every picture of a set."""
    return judge.name(torch.cat([batch.pixels for batch in decoded_batches(images, preparation, FIXED_BATCH)]))


def _of_renders(judge: AttributeJudge, reference: Reference) -> dict[str, float]:
    """The judge's accuracy on the reference's own pictures, where they can still be read and tell what they show."""
    info = reference.info["preparation"]
    try:
        images = open_image_set(reference.info["source"], len(reference))
        asked = asked_of(images, judge.attributes)
        preparation = Preparation(info["resolution"], info["filter"] or "lanczos", convert=True)
        return accuracy(named_by(judge, images, preparation), asked) if asked else {}
    except (ValueError, OSError):
        return {}


@register_metric(
    "attr-accuracy", needs=("asked",), higher_is_better=True, results=(TITLE, f"{TITLE} of the reference")
)
def measure_attributes(given: Given) -> dict[str, Score]:
    """The share of pictures that show what was asked for: the mean over attributes, each of which counts the same.

    The reference's own pictures, where their captions or classes are known, say how far the judge can be trusted.
    """
    judge = load_judge()
    asked = asked_of(given.images, judge.attributes)
    if not asked or not any(asked):
        raise ValueError(
            "`metrics` has 'attr-accuracy', but captions and classes of the set name no attribute that the judge "
            f"knows ({', '.join(judge.attributes)}); write captions as `brickwork data build avatars` does."
        )
    found = {TITLE: accuracy(named_by(judge, given.images, given.preparation), asked)}
    if of_renders := _of_renders(judge, given.reference):
        found[f"{TITLE} of the reference"] = of_renders
    settings = {"judge_sha256": file_digest(WEIGHTS)}
    return {
        title: Score(sum(shares.values()) / len(shares), settings=settings, details={"attributes": shares})
        for title, shares in found.items()
    }
