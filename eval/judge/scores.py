"""How well a picture fits a word or a prompt, as a number: what `brickwork generate --keep-best` chooses by."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from brickwork.errors import advice, explained, loader_of
from brickwork.eval.judge.detectors import DETECTORS, load_detector
from brickwork.eval.judge.grammar import read_caption
from brickwork.eval.judge.requirements import Clause, Requirements
from brickwork.eval.judge.verdicts import Judge

# Pictures, uint8 `(H, W, 3)` each, and what all of them were asked for => a number for each; higher is better.
Score = Callable[[Sequence[np.ndarray], str], list[float]]


def attribute_score(device: Any = None) -> Score:
    """The log-probability of a class among the values of an avatar's attribute, by the judge that ships."""
    import torch

    from brickwork.eval.extractors.attributes import load_judge
    from brickwork.eval.sampling.pipelines import to_device

    judge = to_device(load_judge(), device)

    def score(pictures: Sequence[np.ndarray], asked: str) -> list[float]:
        places = [(name, values.index(asked)) for name, values in judge.attributes.items() if asked in values]
        if not places:
            known = [value for values in judge.attributes.values() for value in values]
            raise ValueError(f"`score` is 'avatar-attributes', which does not know {asked!r}; {advice(asked, known)}")
        name, index = places[0]
        with torch.inference_mode():
            batch = torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures])
            return judge.logits(batch)[name].log_softmax(dim=1)[:, index].tolist()

    return score


def classifier_score(source: str, device: Any = None) -> Score:
    """The log-probability of a class by an image classifier of transformers that has a label of its name."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from brickwork.eval.sampling.pipelines import to_device

    with explained(f"`score` is 'classifier:{source}', which could not be loaded"):
        processor = AutoImageProcessor.from_pretrained(source)
        model = to_device(AutoModelForImageClassification.from_pretrained(source).eval(), device)
    numbers = {name.casefold(): number for number, name in model.config.id2label.items()}

    def score(pictures: Sequence[np.ndarray], asked: str) -> list[float]:
        if asked.casefold() not in numbers:
            raise ValueError(f"`score` is 'classifier:{source}', which has no {asked!r}; {advice(asked, numbers)}")
        with torch.inference_mode():
            inputs = processor(list(pictures), return_tensors="pt").to(model.device)
            return model(**inputs).logits.float().log_softmax(dim=1)[:, numbers[asked.casefold()]].tolist()

    return score


def judge_score(judge: Judge) -> Score:
    """The share of what a prompt asks for that a picture shows; a bare word asks for one object of that name."""

    def score(pictures: Sequence[np.ndarray], asked: str) -> list[float]:
        try:
            requirements = read_caption(asked, judge.detector.names)
        except ValueError:
            requirements = Requirements(asked, (Clause(asked),))
        return [verdict.fit for verdict in judge(pictures, [requirements] * len(pictures))]

    return score


def load_score(name: str, device: Any = None) -> Score:
    """A score by name: `avatar-attributes`, `classifier:<folder or hub id>`, or a detector.

    Raises:
        ValueError: for an unknown name.
    """
    own = {"avatar-attributes": attribute_score, "classifier:": classifier_score}
    load = loader_of("score", name, own | DETECTORS.classes)
    if {name, f"{name.partition(':')[0]}:"} & {*own}:
        return load(device=device)
    return judge_score(Judge(load_detector(name, device)))


def keep_best(
    drawn: Iterable[tuple[Any, Any]], groups: Sequence[Any], best: int, score: Score, asked: Callable[[Any], str]
) -> Iterator[tuple[Any, Any, float]]:
    """The best pictures of each group, once all of it is drawn, in the order in which they were drawn.

    Args:
        drawn: `(key, picture)`, group after group.
        groups: of the pictures, in the same order.
        best: how many of each group to keep.
        score: see `Score`.
        asked: what a group was asked for.

    Yields:
        `(key, picture, score)`.
    """
    waiting: list[tuple[Any, Any]] = []
    for number, entry in enumerate(drawn):
        waiting.append(entry)
        if number + 1 < len(groups) and groups[number + 1] == groups[number]:
            continue
        values = score([np.asarray(picture.convert("RGB")) for _, picture in waiting], asked(groups[number]))
        kept = sorted(sorted(range(len(waiting)), key=lambda i: -values[i])[:best])
        yield from ((*waiting[i], values[i]) for i in kept)
        waiting = []
