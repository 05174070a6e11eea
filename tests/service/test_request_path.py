"""Bound on the number of files that one request runs from its bytes to its answer: the files that a reader opens to follow it.

Files that define only dataclasses do not count, because Python does not attribute the generated methods to a file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import grpc
import pytest

from tests.helpers.service.http_requests import Asking, http_in_background
from tests.helpers.service.sample_images import RED, encode, scene
from tlcli.service import ServerSettings, in_background
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb

ROOT = Path(__file__).resolve().parents[2]
IMAGE = encode(scene(RED, (30, 20, 90, 70)), "JPEG")
PLAIN = pb.ClassifyRequest(encoded=IMAGE)
WITH_MAP = pb.ClassifyRequest(encoded=IMAGE, map=pb.MapRequest(method="gradcam", format=pb.MAP_FORMAT_OVERLAY))
MOST_GRPC, MOST_HTTP = 15, 18
"""Maximum number of files of `service/`. HTTP takes more, because it handles connections, bodies and web pages of other sites itself."""

MOST_CONTRACT = 11
"""Maximum number of files of `tlcli/contract/`, which decode and resize the image, run the model and draw the map."""


class Profile:
    """Profile function that collects the files of the functions that run."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        self._names.add(frame.f_code.co_filename)

    def files(self, request: Callable[[], object]) -> list[str]:
        """Return the files that each of several requests runs. This leaves out background tasks, which run during some of them only."""
        request()  # fills caches
        runs = []
        for _ in range(5):
            self._names = set()
            request()
            runs.append(self._names)
        paths = [Path(name).resolve() for name in set.intersection(*runs) if Path(name).is_absolute()]
        return sorted(path.relative_to(ROOT).as_posix() for path in paths if path.is_relative_to(ROOT))


@pytest.fixture
def profile() -> Iterator[Profile]:
    """Profile the threads that the test starts, which are the server's. The test's own thread sends the requests and is not profiled."""
    profile, former = Profile(), threading.getprofile()
    threading.setprofile(profile)
    yield profile
    threading.setprofile(former)


def below(files: list[str], folder: str) -> list[str]:
    return [name for name in files if name.startswith(folder)]


@pytest.mark.parametrize("message", [PLAIN, WITH_MAP], ids=["plain", "with a map"])
def test_grpc(message: pb.ClassifyRequest, one_model: Path, profile: Profile) -> None:
    with in_background(ServerSettings(models=one_model, port=0)) as port:

        def classify() -> None:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                answer = channel.unary_unary("/tlcli.v1.Classifier/Classify")(message.SerializeToString())
            assert pb.ClassifyResponse.FromString(answer).predictions[0].HasField("map") == message.HasField("map")

        files = profile.files(classify)
    assert {"service/rpc/classifier_servicer.py", "service/execution/batching.py"} <= {*files}
    assert len(below(files, "service/")) <= MOST_GRPC, below(files, "service/")
    assert len(below(files, "tlcli/contract/")) <= MOST_CONTRACT, below(files, "tlcli/contract/")


@pytest.mark.parametrize("query", ["", "?cam=gradcam&format=overlay"], ids=["plain", "with a map"])
def test_http(query: str, one_model: Path, profile: Profile) -> None:
    with http_in_background(ServerSettings(models=one_model, port=0, http_port=0)) as port:

        def classify() -> None:
            with Asking(port) as asking:
                answer = asking.post(f"/v1/classify{query}", IMAGE)
            assert ("map" in answer.json["predictions"][0]) == bool(query)

        files = profile.files(classify)
    assert {"service/rest/classify_routes.py", "service/execution/batching.py"} <= {*files}
    assert len(below(files, "service/")) <= MOST_HTTP, below(files, "service/")
    assert len(below(files, "tlcli/contract/")) <= MOST_CONTRACT, below(files, "tlcli/contract/")
