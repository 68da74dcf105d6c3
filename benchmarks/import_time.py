"""How long `import personainfer` takes, interpreter included, beside the bare interpreter.

python benchmarks/import_time.py
"""

import statistics
import subprocess
import sys
import time

ROUNDS = 15


def seconds(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - began


def main() -> None:
    rounds = [(seconds("pass"), seconds("import personainfer")) for _ in range(ROUNDS)]
    for name, times in zip(
        ("bare interpreter", "with import"), zip(*rounds, strict=True), strict=True
    ):
        print(
            f"{name:17} median {statistics.median(times) * 1e3:.0f} ms, most {max(times) * 1e3:.0f} ms"
        )


if __name__ == "__main__":
    main()
