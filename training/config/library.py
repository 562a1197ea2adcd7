"""What ships in `configs/`: configurations and data sets by name, from anywhere, in an installed package too."""

from pathlib import Path

from brickwork.errors import advice, shown
from brickwork.training.config.reading import read_yaml

CONFIGS = Path(__file__).parents[1] / "configs"
DATA_SETS = CONFIGS / "data_sets"


def shipped(folder: Path = CONFIGS) -> dict[str, Path]:
    """The configurations, or those of another folder, by name."""
    return {path.stem: path for path in sorted(folder.glob("*.yaml")) if not path.stem.endswith("defaults")}


def find_config(name: str | Path, argument: str = "--config", folder: Path = CONFIGS) -> Path:
    """The file that a name stands for.

    Args:
        name: a file; or a shipped one by its name, or by its path in a clone.
        argument: what the name was given for.
        folder: where the shipped ones lie.

    Raises:
        ValueError: where there is none, with the files and names that come near.
    """
    path, known = Path(name), shipped(folder)
    if path.is_file():
        return path
    plain = path.stem.replace("-", "_")
    named = len(path.parts) == 1 and path.suffix in ("", ".yaml", ".yml")
    if plain in known and (named or path.parts[:-1] == ("training", *folder.parts[len(CONFIGS.parent.parts) :])):
        return known[plain]
    what = "is a folder" if path.is_dir() else "is not there"
    beside = [*path.parent.glob("*.yaml"), *path.parent.glob("*.yml")] if path.parent.is_dir() else []
    fix = advice(path.name, [*known, *(file.name for file in beside)], "name a file, or one of those that ship:")
    raise ValueError(f"`{argument}` is {shown(str(name))}, which {what}; {fix}")


def levels_of(name: str | Path, argument: str = "--config", above: tuple[Path, ...] = ()) -> list[dict]:
    """What a configuration file says, and before it what the file says that its `over` names.

    Args:
        name: see `find_config`.
        argument: likewise.
        above: files that lie over this one.

    Raises:
        ValueError: for a file that is not there, or that lies over itself.
    """
    path = find_config(name, argument)
    if path in above:
        raise ValueError(f"`over` is {shown(str(name))}, which lies over this file itself; name another one.")
    values = read_yaml(path)
    below = levels_of(str(values["over"]), "over", (*above, path)) if "over" in values else []
    return [*below, {section: keys for section, keys in values.items() if section != "over"}]


def apply_data_set(levels: list[dict]) -> list[dict]:
    """Put the data set that `data.set` names below the values that go over it.

    A `data.source` that is given after the set, such as on the command line over a file, is other data: the set's
    classes and columns are not for them, and go. To say where the set lies, give both, `data.set` and `data.source`.

    Args:
        levels: a configuration's values, later ones over earlier; not changed.

    Raises:
        ValueError: for a set that is not there.
    """
    content: dict = {}
    cleaned = []
    for level in levels:
        data = level.get("data")
        if isinstance(data, dict):
            if "set" in data:
                content = _data_set(data["set"])
                level = level | {"data": {key: value for key, value in data.items() if key != "set"}}
            elif data.get("source", content.get("source")) != content.get("source"):
                content = {}
        cleaned.append(level)
    return [{"data": content}, *cleaned] if content else cleaned


def _data_set(name: object) -> dict:
    if name is None:
        return {}
    if not isinstance(name, str):
        raise ValueError(f"`data.set` is {shown(name)}; name a data set that ships, or a YAML file with its values.")
    return read_yaml(find_config(name, "data.set", DATA_SETS))
