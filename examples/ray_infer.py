"""Personas for more rows than one machine should ask for: Parquet in, Parquet out, over Ray Data.

    python examples/ray_infer.py pairs/ personas/ --model openai/gpt-4o-mini --workers 8 --rpm 5000

Rows are read, inferred and written as a stream. The workers, on however many machines the cluster has,
share one rate limit: each keeps to its part of it. Ray starts a worker that dies anew, and sends it the
same rows again; what it had asked for by then lies in the cache of its machine. A job that was stopped
goes on when the same command is given again: Ray keeps the ids of the rows that were written beside
the output, where every machine must be able to reach both, and leaves those rows out.

It needs a column of unique ids, and pip install ".[ray]" (in this folder) on every machine (tried with Ray
2.60), with the provider's key in the environment there.
"""

import argparse

import ray
import ray.data
from ray.data.checkpoint import CheckpointConfig

from personainfer import AddPersonas


def infer(
    source: str, output: str, *, id_column: str, batch_size: int, workers: int, **options: object
) -> None:
    """Infer personas for the Parquet files in `source`; write them, and what was done, to `output`."""
    options = {name: value for name, value in options.items() if value is not None}
    AddPersonas(workers=workers, **options)  # what cannot work fails here, before any worker starts
    ray.data.DataContext.get_current().checkpoint_config = CheckpointConfig(
        id_column=id_column,
        checkpoint_path=f"{output.rstrip('/')}-done",
        delete_checkpoint_on_success=False,
    )
    pairs = ray.data.read_parquet(source)
    # A worker gets a block at a time, and after its death gets the whole block again.
    blocks = pairs.repartition(target_num_rows_per_block=batch_size)
    personas = blocks.map_batches(
        AddPersonas,
        fn_constructor_kwargs={"workers": workers, **options},
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
    )
    personas.write_parquet(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", help="a folder of Parquet files with preference pairs")
    parser.add_argument("output", help="the folder to write to")
    parser.add_argument("--model", help='as for infer_personas, such as "openai/gpt-4o-mini"')
    parser.add_argument("--api-base", help="the address of an OpenAI-compatible endpoint")
    parser.add_argument("--id-column", default="id", help="a column of unique ids")
    parser.add_argument(
        "--batch-size", type=int, default=256, help="rows that a worker gets at once"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="processes, on all machines together"
    )
    parser.add_argument("--rpm", type=float, help="requests a minute, of all workers together")
    parser.add_argument("--tpm", type=float, help="tokens a minute, of all workers together")
    parser.add_argument("--max-concurrency", type=int, help="calls in flight, of all together")
    parser.add_argument("--cache-dir", help="where each machine keeps replies: a disk of its own")
    parser.add_argument("--address", help='of the cluster, or "auto"; a local one without it')
    arguments = vars(parser.parse_args())
    ray.init(address=arguments.pop("address"))
    infer(**arguments)


if __name__ == "__main__":
    main()
