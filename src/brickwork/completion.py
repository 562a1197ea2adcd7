"""Print a script by which a shell completes the commands and options of `brickwork`.

examples:
  eval "$(brickwork completion bash)"       # in ~/.bashrc; likewise zsh in ~/.zshrc
  brickwork completion fish | source         # in ~/.config/fish/config.fish
"""

import argparse

from brickwork.cli import COMMANDS, parser_of
from brickwork.errors import one_of

_BASH = """_brickwork() {{
    local words=" ${{COMP_WORDS[*]:1:COMP_CWORD-1}} " current="${{COMP_WORDS[COMP_CWORD]}}"
    case "$words" in
{cases}
    *) COMPREPLY=($(compgen -W "{first}" -- "$current")) ;;
    esac
}}
complete -o bashdefault -o default -F _brickwork brickwork
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", help="bash, zsh or fish")
    parser.set_defaults(run=run, registers=False)  # a shell waits for it when it starts


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    print(one_of("shell", args.shell, {"bash": bash, "zsh": lambda: _ZSH + bash(), "fish": fish})(), end="")
    return 0


def _following() -> dict[str, list[str]]:
    """What may follow the words of each command and group: further words, and options."""
    found: dict[str, list[str]] = {}
    for name in COMMANDS:
        found.setdefault(name, []).extend(parser_of(name).option_names())
        words = name.split()
        for length in range(1, len(words)):
            following = found.setdefault(" ".join(words[:length]), [])
            following += [words[length]] if words[length] not in following else []
    return found


def bash() -> str:
    """For bash, and for zsh with its `bashcompinit`."""
    found = _following()
    cases = [
        f'    " {name} "*) COMPREPLY=($(compgen -W "{" ".join(found[name])}" -- "$current")) ;;'
        for name in sorted(found, key=lambda name: -len(name.split()))
    ]
    first = " ".join(sorted({name.split()[0] for name in COMMANDS}))
    return _BASH.format(cases="\n".join(cases), first=first)


def fish() -> str:
    """For fish."""
    lines = ["complete -c brickwork -n __fish_use_subcommand -f"]
    groups = {name.split()[0]: text for name, (_, text) in reversed(COMMANDS.items())}
    lines += [
        f"complete -c brickwork -n __fish_use_subcommand -a {word} -d {_quoted(groups[word])}" for word in groups
    ]
    for name, following in _following().items():
        seen = " ; and ".join(f"__fish_seen_subcommand_from {word}" for word in name.split())
        for word in following:
            what = f"-l {word.removeprefix('--')}" if word.startswith("--") else f"-a {word}"
            lines.append(f"complete -c brickwork -n {_quoted(seen)} {what}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
