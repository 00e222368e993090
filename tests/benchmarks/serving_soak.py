"""lm-serve for half an hour: 64 clients, random parameters, some that leave; texts compared with those alone.

python tests/benchmarks/serving_soak.py [--minutes 30]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from served import serving
from soak import soak


def main() -> None:
    """Run it, and print what it has seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    minutes = parser.parse_args().minutes
    with serving() as server:
        report = asyncio.run(soak(server, 60 * minutes))
        print(f"{minutes:g} minutes, 64 clients: {report}")
        for line in report.wrong[:10]:
            print(line)
        print(f"the server ended with status {server.stop()}")


if __name__ == "__main__":
    main()
