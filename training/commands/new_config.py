"""Write a configuration with every value and what it means: the defaults, or those of a preset or of a configuration
that ships. Train with it: brickwork train --config FILE.

examples:
  brickwork new-config -o my-run.yaml data.source=my-pictures
  brickwork new-config d-emo-s-2 -o my-run.yaml
"""

import argparse
import re
import sys

from brickwork import options

HEADING = "# Written by `brickwork new-config"


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="[PRESET] [section.key=value …]", help="what differs")
    options.add_yaml_output(parser, " (default: print it)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the file.

    Raises:
        ValueError: for an unknown preset, values that do not fit, or an output that is something else.
    """
    from brickwork.files import check_text, write_file

    names = [word for word in args.words if "=" not in word]
    if len(names) > 1:
        raise ValueError(f"PRESET is {names}; name one preset or configuration, and values as section.key=value.")
    text = new_config(names[0] if names else None, [word for word in args.words if "=" in word])
    if args.output is None:
        sys.stdout.write(text)
        return 0
    check_text(args.output, HEADING, overwrite=args.overwrite, argument="--output")
    write_file(args.output, text)
    pictures = " data.source=my-pictures" if "\n  source: ''" in text else ""
    print(f"wrote {args.output}; train with it: brickwork train --config {args.output}{pictures}")
    return 0


def new_config(name: str | None, overrides: list[str]) -> str:
    """A complete configuration in YAML, with the comments of the defaults.

    Args:
        name: a preset, a configuration that ships, or `None` for the defaults.
        overrides: `section.key=value` over that.
    """
    from brickwork.errors import advice, shown
    from brickwork.training.config.config import load_config
    from brickwork.training.config.library import shipped
    from brickwork.training.config.recipes import list_recipes, recipe

    path, values = None, []
    if name in list_recipes():
        path, values = recipe(name)
    elif name is not None:
        if name.replace("-", "_") not in shipped():
            raise ValueError(f"PRESET is {shown(name)}; {advice(name, [*list_recipes(), *shipped()])}")
        path = name
    # What `auto` stands for is for the machine that trains to say.
    config = load_config(path, ["run.mixed_precision=no", *values, *overrides])
    heading = (
        f"{HEADING}{f' {name}' if name else ''}`: every value of a run; those that you take out have their default."
    )
    return f"{heading}\n{commented(config, 'run.mixed_precision' not in ' '.join(overrides))}"


def commented(config, auto_precision: bool) -> str:
    """The file of defaults, comments and all, with a configuration's values in it."""
    import yaml

    from brickwork.training.config.config import DEFAULTS

    values, section, lines = config.model_dump(), "", []
    if auto_precision:
        values["run"]["mixed_precision"] = "auto"
    for line in DEFAULTS.read_text(encoding="utf-8").splitlines():
        key = re.match(r"(\s*)(\w+):\s?([^#]*?)(\s+#.*)?$", line)
        if key is None or line.startswith("#"):
            continue
        indent, name, before, comment = key.groups()
        if not indent:
            section = name
        value = values[section][name] if indent else values[section]
        if isinstance(value, dict) and not indent:
            lines.append(line)
            continue
        text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
        entry = f"{indent}{name}: {text.strip().removesuffix('...').strip()}"
        width = len(indent) + len(name) + 2 + len(before) + len(comment or "") - len((comment or "").lstrip())
        lines.append(f"{entry:<{width}}{'' if len(entry) < width else '  '}{(comment or '').lstrip()}".rstrip())
    return "\n".join(lines) + "\n"
