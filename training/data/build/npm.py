"""Files of pinned npm packages: fetched with the user's own npm, checked by digest, read without unpacking."""

import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from brickwork.files import write_file


@dataclass(frozen=True)
class Package:
    """One pinned npm package: `sha512` is the tarball's digest in hexadecimal, `members` the files we read in it."""

    name: str
    version: str
    sha512: str
    members: str

    @property
    def spec(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def tarball(self) -> str:
        """The file name `npm pack` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def fetch_package(package: Package, folder: Path) -> Path:
    """Path of the package's tarball in `folder`, downloaded with the user's own npm if it is not there yet.

    Raises `ValueError` if npm is missing or fails, or if the file's digest is not the pinned one.
    """
    path = folder / package.tarball
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder, prefix=".npm-") as temporary:
            downloaded = _npm_pack(package, Path(temporary))
            _check_digest(package, downloaded)
            write_file(path, downloaded.rename)
    else:
        _check_digest(package, path)
    return path


def _npm_pack(package: Package, folder: Path) -> Path:
    fix = (
        f"Or download the tarball {package.tarball} of {package.spec} where there is a network "
        f"(`npm pack {package.spec}`) and pass its folder with --packages DIR."
    )
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(f"npm, which downloads {package.spec}, was not found on PATH: install Node.js. {fix}")
    command = [npm, "pack", package.spec, "--pack-destination", str(folder), "--ignore-scripts", "--loglevel=error"]
    result = subprocess.run(command, capture_output=True, text=True)
    path = folder / package.tarball
    if result.returncode != 0 or not path.exists():
        said = " ".join((result.stderr or result.stdout).split())[:300] or "it said nothing"
        raise ValueError(f"`npm pack {package.spec}` failed with exit status {result.returncode} ({said}). {fix}")
    return path


def _check_digest(package: Package, path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").hexdigest()
    if digest != package.sha512:
        raise ValueError(
            f"{path} is not {package.spec}: its sha512 is {digest[:16]}…, but {package.sha512[:16]}… is needed. "
            "Delete the file and run the command again to download it anew."
        )


def read_members(package: Package, tarball: Path) -> dict[str, bytes]:
    """The files of a tarball that `package.members` matches, keyed by the pattern's group, sorted by file name.

    They are read in place: nothing is unpacked, so no path inside the archive can reach the disk.
    """
    found = {}
    with tarfile.open(tarball, "r:gz") as archive:
        for member in archive:
            match = re.fullmatch(package.members, member.name)
            if match and member.isfile():
                found[member.name] = (match[1], archive.extractfile(member).read())
    if not found:
        raise ValueError(f"{tarball} has no file like {package.members}: is it really {package.spec}?")
    return dict(found[name] for name in sorted(found))
