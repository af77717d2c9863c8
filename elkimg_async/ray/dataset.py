"""Images for the rows of a Ray Dataset, by workers on any number of machines.

    ds = ray.data.read_csv("prompts.csv")
    ds = generate_dataset(ds, run="cats", output_dir="/shared/cats", workers=4)
    ds.write_parquet("/shared/cats.parquet")

Requires the extra `ray`. Ray Data reads, distributes, retries and writes; for each batch it calls
this package: `worker` is a client with its own event loop, `rate` the shared rate of all workers,
`rows` the columns of rows and results, `shared_store` stores images as files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack
from uuid import uuid4

from elkimg_async.batch.budget import check_count
from elkimg_async.config import make_base_url, make_model
from elkimg_async.ray.rate import load_ray
from elkimg_async.ray.rows import POSITION
from elkimg_async.ray.worker import GenerateImages, WorkerOptions, check_options
from elkimg_async.sansio.requests import DEFAULT_MODEL

if TYPE_CHECKING:
    from ray.data import Dataset

_CPUS_PER_WORKER = 0.25
"""Share of a core that a worker reserves, since it mostly waits."""


def generate_dataset(
    ds: "Dataset",
    *,
    run: str | None = None,
    workers: int = 2,
    batch_size: int = 64,
    worker_options: Mapping[str, Any] | None = None,
    **options: Unpack[WorkerOptions],
) -> "Dataset":
    """Return a dataset with the images of each row, generated when Ray Data executes it.

    The prompt of a row is in the column `prompt`; columns named like other options of `generate`
    and `edit` (`n`, `size`, `quality`, `image` …) apply to their row. A row with an `image` is an
    edit: a path visible to all workers, or bytes. These columns are added: `ok`; `images`, a list
    of bytes, or with `output_dir` `paths` and `resumed`; `urls`; `error` (the class),
    `error_message`, `billing`; `request_id`, `attempts`, `elapsed` (seconds), `input_tokens`,
    `output_tokens`, `total_tokens`; `cost` (a decimal number) and its `currency`, null if unknown;
    `idempotency_key`; and `id`, if there is none. They replace columns of the same names.

    A failed row has its error in its columns. The execution fails only for problems that affect all
    rows: no API key, or a rejected one, an exhausted quota, an unknown host, no column of prompts,
    a full disk.

    A worker that dies is replaced by Ray, and its batch is sent again with the same idempotency
    keys, which are derived from `run`, the row's `id` and its request. A server that replays them
    creates and bills nothing twice. Any other server may do so for requests that were in flight,
    but not for files in `output_dir`, which are never requested again, nor for images that are
    still at their URLs: with `output_dir` the next execution only downloads them.

    Args:
        ds: The rows. If they have no `id` (whole numbers or text, different in each row), one is
            derived from content and position; it survives a worker, but may differ in the next
            execution.
        run: The name of the run; the same name continues with the same idempotency keys, at the
            same rate. None: a new one.
        workers: The number of processes, each with its own client.
        batch_size: The number of rows that a worker handles at a time, and that are sent again if
            it dies.
        worker_options: Additional arguments of `Dataset.map_batches`, such as `num_cpus` for each
            worker (a quarter by default) or `resources`.
        options: Options of `GenerateImages`, and of `AsyncImages.generate` and `edit` for rows that
            do not set them.

    Raises:
        ConfigurationError: If an option is invalid, or Ray is missing.
        InvalidRequestError: If a request field has the wrong type.
    """
    ray = load_ray()
    check_options(options)
    check_count("workers", workers)
    check_count("batch_size", batch_size)
    arguments: dict[str, Any] = {"run": run or uuid4().hex, **options}
    arguments["base_url"] = make_base_url(options.get("base_url"))
    if (model := make_model(options.get("model"))) != DEFAULT_MODEL:
        arguments["model"] = model  # of this process's environment, not the worker's
    if isinstance(api_key := options.get("api_key"), str):
        # The plan, which Ray shows and stores, holds a reference only.
        arguments["api_key"] = ray.put(api_key)
    if (folder := options.get("output_dir")) is not None:
        # Workers start in folders of their own.
        arguments["output_dir"] = str(Path(folder).absolute())
    schema = ds.schema(fetch_if_missing=False)
    if schema is None or options.get("id_column", "id") not in schema.names:
        ds = ds.with_column(POSITION, ray.data.expressions.monotonically_increasing_id())
    return ds.repartition(target_num_rows_per_block=batch_size).map_batches(
        GenerateImages,
        fn_constructor_kwargs=arguments,
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        udf_modifying_row_count=False,  # so that `limit` and `take` pay for their rows only
        **{"num_cpus": _CPUS_PER_WORKER, **(worker_options or {})},
    )
