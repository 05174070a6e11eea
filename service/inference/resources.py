"""Resources and limits that the handlers of both protocols share."""

from __future__ import annotations

from dataclasses import dataclass

from tlcli.service.decoding.image_pipeline import ImagePipeline
from tlcli.service.decoding.memory_budget import MemoryBudget
from tlcli.service.repository.model_repository import Repository
from tlcli.service.system.thread_pool import Workers


@dataclass(frozen=True)
class Resources:
    """Resources and limits that the handlers of both protocols share.

    repository: repository that holds the models.
    image_pipeline: pipeline that decodes images and submits them to the models.
    image_workers: threads that render maps and read tensors sent as separate values.
    budget: memory budget shared by all requests.
    max_maps: maximum number of maps, and of classes to explain, per image of a request.
    max_image_s: time limit per image in seconds; see `tlcli.service.inference.request_checks.time_limit`.
    """

    repository: Repository
    image_pipeline: ImagePipeline
    image_workers: Workers
    budget: MemoryBudget
    max_maps: int
    max_image_s: float
