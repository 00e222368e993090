"""How torch's threads wait is set before torch is loaded, unless the user has said it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import TINY

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
TRAIN = """
import os, sys
import lm_trainer.command as command

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)
        return None

sys.meta_path.insert(0, Watch())
command.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "PASSIVE None"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ({"GOMP_SPINCOUNT": "1000"}, "None 1000"),
        ({"KMP_BLOCKTIME": "200"}, "None None"),
    ],
    ids=["unset", "policy", "spincount", "blocktime"],
)
def test_threads_wait_passively_unless_the_user_says_otherwise(
    tmp_path: Path, own: dict[str, str], expected: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES} | own
    command = [sys.executable, "-c", TRAIN, str(TINY), "--out", "run"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout == f"{expected}\n"
