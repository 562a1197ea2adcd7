"""DiceBear's styles, run by Node: installed with npm from a lock file, so that everyone draws the same pictures."""

import json
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

from brickwork.training.data.build.svg import require_rasteriser

SOURCES = Path(__file__).parent / "node"
PROGRAMS = ("node", "npm")


def require_programs() -> None:
    """Raises `ValueError` where Node or the rasteriser is missing, with what to install."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)}, which run DiceBear's styles, were not found on PATH: install Node.js 18 or "
            "later (nodejs.org, or `apt install nodejs npm`)."
        )
    require_rasteriser()


def install(folder: Path) -> None:
    """The locked packages in `folder/node_modules`, unless the same lock file has put them there before."""
    folder.mkdir(parents=True, exist_ok=True)
    lock, installed = "package-lock.json", folder / "node_modules" / ".package-lock.json"
    same = (folder / lock).exists() and (folder / lock).read_bytes() == (SOURCES / lock).read_bytes()
    for name in ("package.json", lock, "draw.mjs"):
        shutil.copyfile(SOURCES / name, folder / name)
    if same and installed.exists():
        return
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        said = " ".join((result.stderr or result.stdout).split())[:300]
        raise ValueError(
            f"`npm ci` in {folder} failed with exit status {result.returncode} ({said}). Where npm has no network, "
            "run the command once elsewhere with --packages DIR, and pass that folder."
        )


class Artist:
    """A running Node process. `styles`: licence, creator, source and options of each style."""

    def __init__(self, process: subprocess.Popen):
        self.process = process
        self.styles = json.loads(self._answer())

    def _answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise ValueError(
                f"Node stopped: {self.process.stderr.read().strip()[-500:]}; Node.js 18 or later is needed."
            )
        return line

    def draw(self, style: str, options: dict) -> str:
        """The SVG of one picture."""
        self.process.stdin.write(json.dumps({"style": style, "options": options}) + "\n")
        self.process.stdin.flush()
        return json.loads(self._answer())


@contextmanager
def artist(folder: Path, styles: list[str]):
    """An `Artist` for these styles, whose packages are in `folder`."""
    process = subprocess.Popen(
        ["node", "draw.mjs", *styles],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        yield Artist(process)
    finally:
        process.kill()
        process.communicate()
