"""Images for the rows of a Ray Dataset, by workers on any number of machines.

    ds = ray.data.read_csv("prompts.csv")
    ds = generate_dataset(ds, run="cats", output_dir="/shared/cats", workers=4)
    ds.write_parquet("/shared/cats.parquet")

Needs the extra `ray`. Ray Data reads, spreads, retries and writes; here is what it calls for each
batch: `worker` is one client with its own event loop, `rate` the one rate of all workers, `rows` knows
what is in a row and what comes back, `shared_store` keeps images as files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack
from uuid import uuid4

from elkimg_async.config import make_base_url
from elkimg_async.errors import ConfigurationError
from elkimg_async.ray.rate import load_ray
from elkimg_async.ray.rows import POSITION
from elkimg_async.ray.worker import GenerateImages, WorkerOptions, check_options

if TYPE_CHECKING:
    from ray.data import Dataset

_SHARE_OF_A_CPU = 0.25
"""What a worker takes of a core: it waits most of the time."""


def generate_dataset(
    ds: "Dataset",
    *,
    run: str | None = None,
    workers: int = 2,
    batch_size: int = 64,
    worker_options: Mapping[str, Any] | None = None,
    **options: Unpack[WorkerOptions],
) -> "Dataset":
    """A dataset with the images of each row, made when Ray Data executes it.

    The prompt of a row is in the column `prompt`; columns named like other options of `generate` (`n`,
    `size`, `quality` …) hold for their row. Such columns are added: `ok`; `images`, a list of bytes, or with
    `output_dir` `paths` and `resumed`; `urls`; `error` (the class), `error_message`, `billing`;
    `request_id`, `attempts`, `elapsed` (seconds), `input_tokens`, `output_tokens`, `total_tokens`,
    `idempotency_key`; and `id`, where there is none. They replace columns of the same names.

    A row that fails says so in its columns. Only what is wrong for all rows fails the execution: no API
    key, no column of prompts, a disk that takes no images.

    A worker that dies is replaced by Ray, and its batch is done again with the same idempotency keys, which are
    made of `run`, the row's `id` and its request. A server that replays them makes and bills nothing twice. Any
    other may do so for what was under way; not for files in `output_dir`, which are never asked for again, nor
    for images that still wait at their URLs: with `output_dir` the next execution only fetches them.

    Args:
        ds: The rows. Where they have no `id` (whole numbers or text, different in each row), one is
            made of content and position; it outlives a worker, but may be another one in the next execution.
        run: The name of the run; the same name goes on with the same keys, at the same rate. None: a new one.
        workers: How many processes, each with a client of its own.
        batch_size: How many rows a worker takes at a time, and does again if it dies.
        worker_options: Further arguments of `Dataset.map_batches`, such as `num_cpus` for each worker (a
            quarter unless told otherwise) or `resources`. None: none.
        options: Those of `GenerateImages`, and of `AsyncImages.generate` for rows that do not say otherwise.

    Raises:
        ConfigurationError, InvalidRequestError: by the caller, for options that cannot work; or Ray is missing.
    """
    ray = load_ray()
    check_options(options)
    for name, value in (("workers", workers), ("batch_size", batch_size)):
        if type(value) is not int or value < 1:
            raise ConfigurationError(f"{name} must be a whole number of at least 1.")
    arguments: dict[str, Any] = {"run": run or uuid4().hex, **options}
    arguments["base_url"] = make_base_url(options.get("base_url"))
    if isinstance(key := options.get("api_key"), str):
        arguments["api_key"] = ray.put(
            key
        )  # the plan, which is shown and stored, holds a reference
    if (folder := options.get("output_dir")) is not None:
        arguments["output_dir"] = str(
            Path(folder).absolute()
        )  # workers start in folders of their own
    schema = ds.schema(fetch_if_missing=False)
    if schema is None or options.get("id_column", "id") not in schema.names:
        ds = ds.with_column(POSITION, ray.data.expressions.monotonically_increasing_id())
    return ds.repartition(
        target_num_rows_per_block=batch_size
    ).map_batches(
        GenerateImages,
        fn_constructor_kwargs=arguments,
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        udf_modifying_row_count=False,  # so that `limit` and `take` are not paid for beyond their rows
        **{"num_cpus": _SHARE_OF_A_CPU, **(worker_options or {})},
    )
