"""`python tests/gen/blocks/freeze_keys.py`: add the names of weights of networks that `keys.json` does not have yet.

Entries that are there stay as they are: one that changes breaks everybody's checkpoints.
"""

import json
from pathlib import Path

from conftest import NETWORKS, make_network

KEYS = Path(__file__).parents[2] / "data" / "blocks" / "keys.json"


def main() -> None:
    frozen = json.loads(KEYS.read_text())
    for name in NETWORKS:
        if name not in frozen:
            frozen[name] = {key: list(tensor.shape) for key, tensor in make_network(name).state_dict().items()}
            print(f"added {name}")
    lines = (f"{json.dumps(name)}: {json.dumps(keys, separators=(',', ':'))}" for name, keys in frozen.items())
    KEYS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
