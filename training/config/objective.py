"""`objective` and `objectives`: what the network learns to predict, what it learns to do without, further losses."""

from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from brickwork.training.config.section import Number, Section, Share, as_number, require


class ObjectiveConfig(Section):
    """What the network learns to predict, and what it learns to do without."""

    type: str
    options: dict[str, Any]
    label_dropout: Share
    brick_dropout: Share
    train_bricks: list[int] | None = Field(description="brick numbers from 0, rising, such as [0, 1], or null")
    brick_images: list[int] | None = Field(description="one number a brick")

    @model_validator(mode="after")
    def _numbers_of_bricks(self):
        bricks, images = self.train_bricks, self.brick_images
        rising = bricks is None or bricks and bricks[0] >= 0 and bricks == sorted(set(bricks))
        require(rising, "objective.train_bricks", bricks, "give brick numbers from 0, rising, such as [0, 1], or null")
        positive = images is None or images and min(images) >= 1
        require(positive, "objective.brick_images", images, "give one number a brick")
        return self


def _further(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    made = [{"weight": 1.0} | entry for entry in entries]
    for number, entry in enumerate(made):
        key, kind = f"objectives[{number}]", entry.get("type")
        require("type" in entry, key, entries[number], "name its `type`, such as {type: output, weight: 1}")
        require(isinstance(kind, str), f"{key}.type", kind, "give a name")
        number = entry["weight"] = as_number(entry["weight"])
        finite = isinstance(number, (int, float)) and not isinstance(number, bool) and isfinite(number)
        require(finite, f"{key}.weight", number, "give a number")
    names = [entry.get("name", entry["type"]) for entry in made]
    for name in names:
        require(names.count(name) == 1, "objectives", names, f"{name!r} is there twice; give one another `name`")
    return made


# Further losses, each with its `type`, a `weight` (1 where it says none), perhaps a `name`, and keys of its own.
FurtherObjectives = Annotated[
    list[dict[str, Any]],
    AfterValidator(_further),
    Field(description="a list of mappings, such as [{type: output, weight: 1}]"),
]


class LatentObjectiveConfig(Section):
    """The denoising loss; what is predicted, and on which noise schedule, is the pipeline's."""

    min_snr_gamma: Number | None = Field(gt=0, description="a positive number, or null")
    noise_offset: Share
    caption_dropout: Share
    size_conditions: Literal["size", "picture"]
