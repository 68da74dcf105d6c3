"""Infer personas for the example pairs on the embedded model, and show them.

Run by `make demo`. A second run makes no call: every reply is in the cache.
"""

from pathlib import Path

import personainfer as pi

HERE = Path(__file__).parent


def main() -> None:
    table = pi.infer_personas(HERE / "data" / "preferences.jsonl", "local")
    print(table.format())
    print(
        "\nThese personas come from a model of 135 million parameters, which is for trying the API:"
        "\nname a stronger one to get personas that you would rely on."
    )
    saved = table.save(HERE.parent / "demo" / "personas.parquet")
    usage = table.usage
    if usage.calls == 0:
        print(f"\nNo call was made: all {usage.cached} replies came from the cache.")
    else:
        print(f"\n{usage.calls} calls, {usage.cached} replies from the cache.")
    print(
        f"Saved to {saved.relative_to(Path.cwd()) if saved.is_relative_to(Path.cwd()) else saved}"
    )


if __name__ == "__main__":
    main()
