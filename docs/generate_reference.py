"""Reference pages of the documentation site, generated from the code: commands, Python, HTTP, gRPC and settings.

    python docs/generate_reference.py [FOLDER]

Writes them to FOLDER, by default docs/reference, which git ignores. `make docs` does so before it builds the site.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
MODULES = ("tlcli", "tlcli.service", "tlcli.training", "tlcli.exports")
PROTOS = ("tlcli/v1/classifier.proto", "inference/open_inference.proto")
SECTIONS = ("Args", "Returns", "Yields", "Raises", "Example", "Examples", "Attributes", "Note")
START_S = 60


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/reference"
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in pages().items():
        (folder / f"{name}.md").write_text(page, encoding="utf-8")


def pages() -> dict[str, str]:
    """Return the text of every generated page."""
    return {"cli": cli_page(), "python": python_page(), "http": http_page(openapi()), "wire": wire_page(), "settings": settings_page()}


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *(tuple(escape(cell) for cell in row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def escape(text: str) -> str:
    """Return text for a table's cell or a paragraph: outside of code, tags and bars are shown as they are."""
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(piece.replace("|", "\\|") if piece.startswith("`") else escape_prose(piece) for piece in pieces)


def escape_prose(text: str) -> str:
    return re.sub(r"([|*_\[\]])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))


# Commands


def commands() -> Iterator[tuple[str, click.Command, click.Context]]:
    from tlcli.__main__ import cli

    with click.Context(cli, info_name="tlcli") as parent:
        for name in cli.list_commands(parent):
            command = cli.get_command(parent, name)
            assert command is not None
            yield name, command, click.Context(command, parent, info_name=name)


def cli_page() -> str:
    text = "# Command line\n\nEvery command answers `--help`. Commands that print a table print it as JSON with `--json`.\n\n"
    for name, command, context in commands():
        usage = command.get_usage(context).removeprefix("Usage: ")
        text += f"## tlcli {name}\n\n```text\n{usage}\n```\n\n{help_text(command)}\n\n"
        text += table(("option", "meaning"), options(command, context)) + "\n"
    return text


def options(command: click.Command, context: click.Context) -> list[tuple[str, ...]]:
    """Return names and help of a command's options."""
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    return [(f"`{names}`", meaning) for names, meaning in (record for record in records if record)]


def help_text(command: click.Command) -> str:
    """Return a command's help as Markdown; click's `\\b` marks paragraphs that are kept as they are."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(
        f"```text\n{part.removeprefix(chr(8)).strip()}\n```" if part.startswith("\b") else escape(part) for part in paragraphs
    )


# Python


def python_page() -> str:
    text = "# Python\n\nNames that are not listed here may change without notice.\n\n"
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        names = [name for name in getattr(module, "__all__", ()) if not name.startswith("_")]
        if names:
            text += f"## {module_name}\n\n{docstring(module)}\n\n"
            text += "".join(entry(module_name, name, getattr(module, name)) for name in names)
    return text


def entry(module_name: str, name: str, value: object) -> str:
    """Return the entry of a class with its public methods, of a function, or of a type alias."""
    heading = f"### {module_name}.{name}\n\n"
    if inspect.isclass(value):
        return heading + code(f"class {name}{signature(value)}") + docstring(value) + "\n\n" + "".join(members(name, value))
    if callable(value) and inspect.isroutine(value):
        return heading + code(f"{name}{signature(value)}") + docstring(value) + "\n\n"
    return heading + code(f"{name} = {value}".replace("typing.", ""))


def members(name: str, cls: type) -> Iterator[str]:
    for member, value in vars(cls).items():
        routine = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if member.startswith("_") or not getattr(routine if not isinstance(value, property) else value.fget, "__doc__", None):
            continue
        if isinstance(value, property):
            yield f"#### {name}.{member}\n\n{docstring(value)}\n\n"
        elif inspect.isfunction(routine):
            yield f"#### {name}.{member}\n\n{code(member + signature(routine))}{docstring(routine)}\n\n"


def signature(value: Any) -> str:
    """Return the parameters of a callable, one per line where they are long; annotations without quotes."""
    try:
        whole = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    parameters = [parameter for name, parameter in whole.parameters.items() if name != "self"]
    text = unquoted(str(whole.replace(parameters=parameters)))
    if len(text) <= 100:
        return text
    lines: list[str] = []
    for parameter, previous in zip(parameters, [None, *parameters], strict=False):
        if parameter.kind is parameter.KEYWORD_ONLY and (previous is None or previous.kind is not parameter.KEYWORD_ONLY):
            lines.append("    *,")
        lines.append(f"    {unquoted(str(parameter))},")
    answer = "" if whole.return_annotation is whole.empty else unquoted(f" -> {whole.return_annotation!r}")
    return "\n".join(["(", *lines, f"){answer}"])


def unquoted(text: str) -> str:
    return re.sub(r"((?::|->) )'([^']*)'", r"\1\2", text)


def code(text: str) -> str:
    return f"```python\n{text}\n```\n\n"


def docstring(value: object) -> str:
    """Return a docstring as Markdown: sections such as `Args:` become lists, indented blocks code."""
    lines: list[str] = []
    section = ""
    for line in (inspect.getdoc(value) or "").splitlines():
        heading = line.removesuffix(":") if line.endswith(":") else ""
        if heading in SECTIONS:
            section = heading
            lines += ["", f"**{heading}**", ""]
        elif section and not section.startswith("Example") and re.match(r" {4}\S", line):
            name, colon, meaning = line.strip().partition(": ")
            lines.append(f"- `{name}`: {escape(meaning)}" if colon else f"- {escape(line)}")
        elif section and not section.startswith("Example") and line.startswith("     "):
            lines.append(f"  {escape(line)}")
        elif line.startswith("    "):
            lines.append(line)
        else:
            section = section if not line.strip() else ""
            name, colon, meaning = line.partition(": ")
            is_attribute = bool(colon) and re.fullmatch(r"[a-z_]+(, [a-z_]+)*", name) is not None
            lines.append(f"- `{name}`: {escape(meaning)}" if is_attribute else escape(line))
    return "\n".join(lines).strip()


# HTTP and gRPC


def openapi() -> dict[str, Any]:
    """Return the OpenAPI document, as a server answers it."""
    with tempfile.TemporaryDirectory() as models:
        placeholder = Path(models, "placeholder/1/model.onnx")
        placeholder.parent.mkdir(parents=True)
        placeholder.touch()  # a server needs a model, and starts with one that it cannot read
        port, http_port = free_port(), free_port()
        command = [sys.executable, "-m", "tlcli", "serve", models, "--port", str(port), "--http-port", str(http_port), "--device", "cpu"]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            return document_at(f"http://127.0.0.1:{http_port}/openapi.json", server)
        finally:
            server.terminate()
            server.communicate(timeout=60)


def document_at(address: str, server: subprocess.Popen[str]) -> dict[str, Any]:
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                document: dict[str, Any] = json.load(answer)
                return document
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    server.kill()
    raise RuntimeError(f"the server did not start: {server.communicate()[1]}")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def http_page(document: dict[str, Any]) -> str:
    text = "# HTTP\n\nThe server offers this document as OpenAPI at `/openapi.json`, and as a page at `/docs`. "
    text += "How to use it: [serving](../serving.md#http).\n\n"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method not in ("get", "post", "put", "delete"):
                continue
            text += f"## {method.upper()} {path}\n\n{escape(operation.get('summary', ''))}\n\n"
            text += escape(operation.get("description", "")) + "\n\n"
            if operation.get("parameters"):
                rows = [parameter_row(parameter) for parameter in operation["parameters"]]
                text += table(("parameter", "in", "type", "meaning"), rows) + "\n"
            rows = [(status, response.get("description", "")) for status, response in operation.get("responses", {}).items()]
            text += table(("status", "answer"), rows) + "\n"
    return text


def parameter_row(parameter: dict[str, Any]) -> tuple[str, ...]:
    schema = parameter.get("schema", {})
    kind = ", ".join(f"`{value}`" for value in schema.get("enum", ())) or str(schema.get("type", ""))
    return (f"`{parameter['name']}`", parameter["in"], kind, parameter.get("description", "") or schema.get("description", ""))


def wire_page() -> str:
    text = "# gRPC\n\nThe server answers both services on one port, with reflection and `grpc.health.v1`. "
    text += "Clients in other languages are generated from these files of `proto/`. "
    text += "Which error is which status: [serving](../serving.md#refusals).\n\n"
    for name in PROTOS:
        source = (ROOT / "proto" / name).read_text(encoding="utf-8")
        methods = re.findall(r"^  rpc (\w+)\s*\((stream )?(\w+)\)\s*returns\s*\((stream )?(\w+)\)", source, re.MULTILINE)
        rows = [
            (f"`{method}`", f"{many or ''}`{request}`", f"{answers or ''}`{answer}`") for method, many, request, answers, answer in methods
        ]
        text += f"## {name}\n\n{table(('method', 'request', 'answer'), rows)}\n```protobuf\n{source}```\n\n"
    return text


def settings_page() -> str:
    text = "# Settings of the server\n\nEach setting is a flag (`--max-batch-size 16`), an environment variable "
    text += "(`TLCLI_SERVE_MAX_BATCH_SIZE=16`) or a key of a TOML file (`max_batch_size = 16`). "
    text += "A flag overrides the variable, the variable overrides the file: [serving](../serving.md#settings).\n\n"
    command, context = next((command, context) for name, command, context in commands() if name == "serve")
    rows = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record and parameter.name not in ("file", "config", "print_config", "help"):
            rows.append((f"`{parameter.name}`", f"`{record[0]}`", record[1]))
    return text + table(("key", "flag", "meaning"), rows)


if __name__ == "__main__":
    main()
