"""Documentation of HTTP against the server: the OpenAPI document, its page, and docs/serving.md with its commands."""

from __future__ import annotations

import html.parser
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate
from PIL import Image

from tests.helpers.service.http_requests import Asking, http_in_background
from tests.helpers.service.sample_images import RED, encode, scene
from tests.helpers.service.toy_model import LABELS
from tests.service.conftest import FIRST
from tests.service.rest.test_requests import IMAGES, given
from tlcli.contract.errors import MemoryLimitError
from tlcli.contract.images.decoding import decoding_bytes
from tlcli.service import ServerSettings
from tlcli.service.decoding import memory_budget
from tlcli.service.protocol import message_parsing
from tlcli.service.rest import app, http_connections, json_fields
from tlcli.service.rest.endpoint import Endpoint
from tlcli.service.rest.openapi import OpenApi
from tlcli.service.rest.responses import STATUSES, error_response
from tlcli.service.rpc import grpc_server
from tlcli.service.settings.server_settings import SETTINGS
from tlcli.service.telemetry import log_writer

IMAGE = encode(scene(RED, (30, 20, 90, 70)), "JPEG")
DOCUMENT = Path(__file__).parents[3] / "docs/serving.md"
NAME = "flowers"
"""Name of the model in docs/serving.md."""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("models")
    FIRST.save(folder / NAME / "1/model.onnx", NAME)
    with http_in_background(ServerSettings(models=folder, port=0, http_port=0)) as port:
        yield port


@pytest.fixture(scope="module")
def document(port: int) -> Any:
    with Asking(port) as asking:
        return asking.get("/openapi.json").json


def test_the_document_is_valid_and_lists_every_endpoint(document: Any) -> None:
    validate(document)
    listed = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    model = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
    assert listed == {
        *(("GET", path) for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs")),
        *(("GET", path) for path in model),
        *(("GET", f"{path}/ready") for path in model),
        *(("POST", f"{path}/infer") for path in model),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/{name}/load"),
        ("POST", "/v2/repository/models/{name}/unload"),
        ("POST", "/v1/classify"),
    }
    assert "security" not in document


def test_every_path_of_the_document_is_answered(port: int, document: Any) -> None:
    with Asking(port) as asking:
        for path, methods in document["paths"].items():
            for method in methods:
                answer = asking.ask(method.upper(), path.format(name=NAME, version="1"), b"")
                assert answer.status not in (404, 405), path
                assert str(answer.status) in methods[method]["responses"], (path, answer.body)


def test_every_schema_is_used(document: Any) -> None:
    used = {one.rpartition("/")[2] for one in re.findall(r"#/components/schemas/\w+", json.dumps(document))}
    assert used == document["components"]["schemas"].keys()


def test_answers_have_the_fields_of_their_schemas(port: int, document: Any) -> None:
    with Asking(port) as asking:
        answers = {
            "Classification": asking.post("/v1/classify?cam=gradcam", IMAGE),
            "InferResponse": asking.post(f"/v2/models/{NAME}/infer", {"id": "mine", "inputs": [given("images", IMAGES)]}),
            "ModelMetadata": asking.get(f"/v2/models/{NAME}"),
            "ServerMetadata": asking.get("/v2"),
            "Live": asking.get("/v2/health/live"),
            "Ready": asking.get("/v2/health/ready"),
            "RepositoryIndex": asking.post("/v2/repository/index"),
            "Error": asking.get("/nosuch"),
        }
    for name, answer in answers.items():
        check(answer.json, {"$ref": f"#/components/schemas/{name}"}, document)


def check(value: Any, schema: Any, document: Any) -> None:
    """Check that a value has no field that its schema lacks, and every required one."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if schema.get("type") == "array":
        assert isinstance(value, list)
        for one in value[:5]:
            check(one, schema["items"], document)
    elif schema.get("type") == "object":
        assert {*schema.get("required", [])} <= value.keys() <= schema["properties"].keys()
        for name, one in value.items():
            check(one, schema["properties"][name], document)
    elif "type" in schema:
        kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert any(isinstance(value, kinds[name]) for name in names), (value, schema)


class Page(html.parser.HTMLParser):
    """Tags, links, ids and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: set[str] = set()
        self.ids: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        named = dict(attrs)
        assert "src" not in named
        if "href" in named:
            self.links.add(str(named["href"]))
        if "id" in named:
            self.ids.add(str(named["id"]))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_lists_everything_and_loads_nothing(port: int, document: Any) -> None:
    with Asking(port) as asking:
        answer = asking.get("/docs")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    page = Page(answer.body.decode())
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert page.links == {"openapi.json"} | {f"#{name}" for name in page.ids if f"#{name}" in page.links}
    assert page.ids == document["components"]["schemas"].keys()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()} {path}" in page.text
            assert operation["summary"] in page.text


def test_descriptions_are_escaped() -> None:
    async def nothing(*args: object) -> Any: ...

    odd = Endpoint("odd", "GET", ("/odd",), nothing, "<script>alert(1)</script>")
    described = OpenApi([odd], has_tokens=False)
    assert "<script>" not in described.html


def test_the_table_of_refusals_has_every_status() -> None:
    section = DOCUMENT.read_text(encoding="utf-8").split("\n## Refusals\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[2:4]] for line in section.splitlines() if line.startswith("| ")][1:]
    written = {
        (code, int(status)) for codes, statuses in rows for code in re.findall("[A-Z_]{8,}", codes) for status in _statuses(statuses)
    }
    known = {(code.name, status) for code, status in STATUSES.items()}
    known |= {
        ("RESOURCE_EXHAUSTED", error_response(MemoryLimitError("full")).status_code),
        ("RESOURCE_EXHAUSTED", 413),
        ("UNIMPLEMENTED", 404),
    }
    assert written == known | {("UNIMPLEMENTED", 405)}
    alone = {int(status) for codes, statuses in rows if not codes for status in _statuses(statuses)}
    assert alone == {403, 408, 415}


def _statuses(cell: str) -> list[str]:
    return re.findall(r"\b[45]\d\d\b", cell)


def test_bounds_are_those_of_the_code() -> None:
    section = " ".join(DOCUMENT.read_text(encoding="utf-8").split("\n## Bounds\n")[1].split("\n## ")[0].split())
    for name in (name for name in SETTINGS if name.startswith(("max_", "limits_", "stream_"))):
        assert f"`{name}`" in section or name in ("max_batch_size", "max_queue_delay_ms", "max_connection_age_s"), name
    assert f"| {message_parsing.MAX_FIELDS:,}; {message_parsing.MAX_NUMBERS:,}; {message_parsing.MAX_TEXT_BYTES:,} |" in section
    assert f"| {json_fields._MAX_VALUES:,}; {json_fields._MAX_CONTAINERS:,}; {json_fields._MAX_WIDE_BYTES:,} |" in section
    assert f"| {http_connections._HANDSHAKE_S:g} s; {http_connections._HEAD_S:g} s and {app._READ_S:g} s |" in section
    patience = dict(grpc_server._TIMEOUTS)
    ping_s = (patience["grpc.keepalive_time_ms"] + patience["grpc.keepalive_timeout_ms"]) / 1000
    assert f"| {ping_s:g} s; {patience['grpc.max_connection_idle_ms'] / 1000:g} s |" in section
    assert f"| {log_writer._LINES:,} |" in section
    assert f"No memory within {memory_budget.WAIT_S:g} s" in DOCUMENT.read_text(encoding="utf-8")
    assert (memory_budget._SMALL_SHARE, memory_budget._KEPT_SHARE, memory_budget._BODIES_SHARE) == (64, 4, 2)


def test_documented_memory_of_decoding_per_pixel() -> None:
    section = " ".join(DOCUMENT.read_text(encoding="utf-8").split())
    image = Image.new("RGB", (64, 48))
    files = {"baseline": _encoded(image, "JPEG"), "progressive": _encoded(image, "JPEG", progressive=True)}
    files |= {f"{kind} {mode}": _encoded(image.convert(mode), kind) for kind in ("PNG", "WEBP", "TIFF") for mode in ("L", "RGB", "RGBA")}
    files |= {f"{kind} 16 bits": _encoded(Image.new("I;16", image.size), kind) for kind in ("PNG", "TIFF")}
    files["32 bits"] = _encoded(Image.new("I", image.size), "TIFF")
    prices = {name: decoding_bytes(Image.open(io.BytesIO(data)), data) / (64 * 48) for name, data in files.items()}
    most = max(prices.values())
    expected = (
        f"Decoding reserves {prices['baseline']:g} bytes for each pixel of a baseline JPEG, {prices['progressive']:g} of a progressive one"
    )
    assert f"{expected}, and at most {most:g} of any image" in section
    assert f"a budget of less than {most * ServerSettings().limits.max_pixels / 1e9:g} GB may refuse" in section


def _encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")


@needs_curl
def test_the_commands_of_the_documentation(port: int, tmp_path: Path) -> None:
    section = DOCUMENT.read_text(encoding="utf-8").split("\n## HTTP\n")[1].split("\n## ")[0]
    blocks = [block for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) if "tlcli serve" not in block]
    assert sum(block.count("curl ") for block in blocks) == 8
    (tmp_path / "cat.jpg").write_bytes(IMAGE)
    answers = []
    for command in (one for block in blocks for one in re.split(r"\n(?=\w)", block.strip())):
        here = (
            command.replace("localhost:8000", f"127.0.0.1:{port}")
            .replace("tulip", LABELS[0])
            .replace("curl ", "curl -sS --fail-with-body ")
        )
        done = subprocess.run(["bash", "-c", f"set -eo pipefail; {here}"], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        answers.append(done.stdout.decode())
    assert (tmp_path / "overlay.png").read_bytes().startswith(b"\x89PNG")
    assert "predictions" in json.loads(answers[0])
    assert [one["name"] for one in json.loads(answers[-1])["outputs"]] == ["scores", "gradcam"]
