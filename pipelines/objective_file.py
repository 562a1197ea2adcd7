"""What a pipeline's network was trained for, kept beside it: `objective.json` in the pipeline's folder.

diffusers has no field for it, since sampling needs none of it; scores on held-out pictures do: at which noise levels a
network was trained decides what its loss means.
"""

from pathlib import Path

from brickwork.files import read_json, write_json

OBJECTIVE_FILE = "objective.json"


def save_objective(folder: str | Path, name: str, options: dict) -> None:
    """Note an objective in a pipeline's folder.

    Args:
        folder: the pipeline's.
        name: of `brickwork.gen.parameterization.OBJECTIVES`.
        options: its arguments, as far as they differ from their defaults.
    """
    write_json(Path(folder) / OBJECTIVE_FILE, {"type": name, "options": options})


def saved_objective(folder: str | Path) -> tuple[str, dict] | None:
    """Name and options of the objective noted in a folder, `None` where there is none.

    Raises:
        ValueError: for a file that cannot be read as one.
    """
    path = Path(folder) / OBJECTIVE_FILE
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        return str(content["type"]), dict(content["options"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no objective ({error!r}); give type and options, or remove it.") from None
