"""The Dockerfile against the package that it installs; `hadolint Dockerfile` lints it."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text()


def test_it_copies_what_the_package_is_built_from():
    copied = {name for line in re.findall(r"^COPY (.*)$", TEXT, re.MULTILINE) for name in line.split()[:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    places = project["tool"]["setuptools"]["package-dir"].values()
    needed = {Path(place).parts[0] for place in places} | {project["project"]["readme"], "LICENSE", "pyproject.toml"}
    assert needed <= copied and all((ROOT / name).exists() for name in copied)


def test_it_installs_what_there_is():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.findall(r"'\.\[([\w,]+)\]'", TEXT)
    assert extras and {name for words in extras for name in words.split(",")} <= set(project["optional-dependencies"])
    (version,) = re.findall(r"^FROM python:(3\.\d+)", TEXT, re.MULTILINE)
    assert f"Programming Language :: Python :: {version}" in project["classifiers"]
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_it_runs_as_a_user_of_its_own_who_may_write_where_it_works():
    user = re.search(r"useradd --create-home --uid (\d+) (\w+)", TEXT)
    assert f"USER {user[1]}\n" in TEXT and f"install -d -o {user[2]} /home/{user[2]}/work" in TEXT
    assert f"WORKDIR /home/{user[2]}/work\nENTRYPOINT" in TEXT
