"""`tlcli`: the entry point. Commands are imported only when they run, so that `--help` is quick."""

from __future__ import annotations

import errno
import importlib
import os
import sys

import click

from tlcli import __version__
from tlcli.cli.interruption import Interrupted, raise_on_signals
from tlcli.cli.parsing import unknown_command
from tlcli.contract.errors import TlcliError
from tlcli.contract.files.display_name import printable

_FULL = (errno.ENOSPC, errno.EDQUOT)

COMMANDS = {
    "finetune": "Fine-tune a pretrained CNN on images, and export it.",
    "export": "Write a run, or a backbone as it is, to one ONNX file with maps in its graph.",
    "predict": "Ask an exported model about images, without a server.",
    "visualize": "Draw a network's filters, and what its layers make of an image.",
    "serve": "Answer over gRPC, and over HTTP with --http-port, for every model in a folder.",
    "classify": "Ask a running server about images.",
    "health": "Ask a running server whether it serves, for containers.",
    "compare": "Show several runs side by side: in what they differ, and how they did.",
    "evaluate": "Measure how good a model's answers are, on labelled images.",
    "evaluate-cam": "Measure how good a model's maps are, each method beside the others.",
    "bench": "Put a load on a running server: throughput, latencies, refusals.",
    "demo": "All of it in one go, with nothing downloaded.",
    "backbones": "List the backbones there are.",
    "datasets": "List the data sets known by name.",
    "models": "List the exported models in a folder.",
}


class Commands(click.Group):
    """A group whose commands live in `tlcli.cli.commands.<name>` as `command`, a dash in the name being `_` there."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"tlcli.cli.commands.{cmd_name.replace('-', '_')}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Raises: UsageError: no such command, with the nearest one."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(unknown_command(args[0], COMMANDS), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table above, without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="tlcli")
def cli() -> None:
    """From a folder of images to a served answer with a class activation map.

    \b
    tlcli demo                          see all of it, nothing downloaded
    tlcli finetune --backbone resnet50 --dataset FOLDER
    tlcli serve models/
    tlcli classify image.jpg --cam gradcam
    """


def main() -> None:
    """Run, and turn our own errors into one line and an exit code. Anything else is a defect, with its traceback."""
    raise_on_signals()
    try:
        cli.main(standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        stopped = error.__cause__ if isinstance(error, click.Abort) and error.__cause__ is not None else error
        _fail(_with_notes("stopped", stopped), stopped.exit_code if isinstance(stopped, Interrupted) else 130)
    except TlcliError as error:
        _fail(_with_notes(str(error), error), error.exit_code)
    except BrokenPipeError:
        _leave_standard_output()  # the reader has left
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "torchvision", "timm", "onnx", "onnxscript", "safetensors", "matplotlib", "scipy"):
            raise
        _fail(f"this command needs {error.name}, which is not installed: pip install 'tlcli[train]'", 1)
    except MemoryError as error:
        _fail(_with_notes("out of memory", error), 1)
    except OSError as error:
        _fail(_with_notes(_told(error), error), 1)


def _told(error: OSError) -> str:
    """Describe an error of the system: the file, the reason, and the way out."""
    where = error.filename
    if where is None and error.errno in _FULL:
        where = "standard output"
        _leave_standard_output()
    way_out = ": make room, then try again" if error.errno in _FULL else ""
    return f"{where}: {error.strerror}{way_out}" if where else str(error)


def _with_notes(message: str, error: BaseException) -> str:
    return "; ".join((message, *getattr(error, "__notes__", ())))


def _leave_standard_output() -> None:
    """Say no more at exit, where Python would print that it could not."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> None:
    click.echo(f"Error: {printable(message)}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
