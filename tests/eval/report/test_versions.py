"""Versions that go with numbers."""

import platform
from importlib.metadata import PackageNotFoundError, version

from brickwork.eval.report import versions


def test_versions_are_those_of_the_packages(monkeypatch):
    found = versions.library_versions()
    assert found == {"python": platform.python_version()} | {name: version(name) for name in versions.LIBRARIES}

    def missing(name):
        raise PackageNotFoundError(name)

    versions._version.cache_clear()
    monkeypatch.setattr(versions, "distribution", missing)
    assert versions.library_versions()["torch"] == "unknown"
