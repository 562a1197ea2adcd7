"""A function in a process of its own, which has loaded and measured nothing before."""

import importlib
import json
import os
import subprocess
import sys
from typing import Any


def in_fresh_process(function: str, *arguments: Any, **environment: str) -> Any:
    """What a function returns, as JSON values.

    Args:
        function: `module:name`.
        arguments: JSON values.
        environment: variables beside those of this process.

    Raises:
        ValueError: where it fails, with the last line that it says.
    """
    command = [sys.executable, "-m", __name__, function, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ValueError(f"it ended with status {done.returncode}{': ' + lines[-1] if lines else ''}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    print(json.dumps(getattr(importlib.import_module(module), name)(*json.loads(sys.argv[2]))))
