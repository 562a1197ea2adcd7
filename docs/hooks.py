"""Hooks of the docs site: the package as it is installed, and links out of `docs/`, which a site does not have."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("gen", "pipelines", "adapters", "eval", "training")
OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)")


def on_startup(command: str, dirty: bool) -> None:
    """Lay links under `build/api/brickwork`, because the rooms of the clone are one package only once installed."""
    package = ROOT / "build" / "api" / "brickwork"
    package.mkdir(parents=True, exist_ok=True)
    for source in [*(ROOT / "src" / "brickwork").iterdir(), *(ROOT / room for room in ROOMS)]:
        link = package / source.name
        if source.name != "__pycache__" and not link.is_symlink():
            link.symlink_to(source)


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Show a link to a file of the repository as its path; README.md is the start page here."""

    def shown(match: re.Match) -> str:
        words, target = match.groups()
        path, _, anchor = target.removeprefix("../").partition("#")
        if path == "README.md":
            return f"[{words}](index.md)"
        return f"`{path}`" if path in words else f"{words} (`{path}`)"

    return OUTSIDE.sub(shown, markdown)
