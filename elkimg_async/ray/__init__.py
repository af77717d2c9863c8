"""Images for the rows of a Ray Dataset; see `elkimg_async.ray.dataset`."""

from elkimg_async.ray.dataset import generate_dataset
from elkimg_async.ray.worker import GenerateImages, WorkerOptions

__all__ = ["GenerateImages", "WorkerOptions", "generate_dataset"]
