"""Entry point of `tlcli`. A command is imported only when it runs, which keeps `--help` fast."""

from __future__ import annotations

import errno
import importlib
import os
import sys

import click

from tlcli import __version__
from tlcli.cli.interruption import describe_interruption, raise_on_signals
from tlcli.cli.parsing import unknown_command
from tlcli.contract.errors import TlcliError
from tlcli.contract.files.display_name import printable

_FULL = (errno.ENOSPC, errno.EDQUOT)

COMMANDS = {
    "finetune": "Fine-tune a pretrained network on images, and export it.",
    "export": "Write a run, a published backbone or an ONNX classifier to one ONNX file with maps in its graph.",
    "predict": "Classify images with an exported model, without a server.",
    "visualize": "Draw the filters of a network, and the activations of its layers for an image.",
    "serve": "Serve every model of a repository over gRPC, and over HTTP with --http-port.",
    "classify": "Classify images on a running server.",
    "health": "Check whether a running server is ready, for containers.",
    "compare": "Compare the settings and metrics of runs side by side.",
    "clean": "Find probable label errors, near-duplicates, outliers and poor images.",
    "evaluate": "Measure the accuracy of an exported model on labelled images.",
    "evaluate-cam": "Measure the maps of an exported model, method by method.",
    "bench": "Load-test a running server: throughput, latency, rejected requests.",
    "demo": "Train, export, serve and classify on drawn images; nothing is downloaded.",
    "backbones": "List the available backbones.",
    "datasets": "List the known data sets.",
    "models": "List the exported models of a repository.",
}


class Commands(click.Group):
    """Command group that imports each command lazily as `tlcli.cli.commands.<name>.command`. Dashes in names become underscores."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order in which they are typically used."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; None if no command has this name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"tlcli.cli.commands.{cmd_name.replace('-', '_')}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments name.

        Raises:
            UsageError: the command does not exist; the message suggests the closest match.
        """
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(unknown_command(args[0], COMMANDS), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="tlcli")
def cli() -> None:
    """Fine-tune image classifiers, export them to ONNX with class activation maps, and serve them.

    \b
    tlcli demo                          the entire workflow, without downloads
    tlcli finetune --backbone resnet50 --dataset FOLDER
    tlcli serve models/
    tlcli classify image.jpg --cam gradcam
    """


def main() -> None:
    """Run a command and exit with its code. Expected errors are printed as one line; other exceptions are bugs and keep their traceback."""
    raise_on_signals()
    try:
        cli.main(standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        interruption = error.__cause__ if isinstance(error, click.Abort) and error.__cause__ is not None else error
        message, code = describe_interruption(interruption)
        _fail(_with_notes(message, interruption), code)
    except TlcliError as error:
        _fail(_with_notes(str(error), error), error.exit_code)
    except BrokenPipeError:
        _discard_standard_output()  # the reader has closed the pipe
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "torchvision", "timm", "onnx", "onnxscript", "safetensors", "matplotlib", "scipy"):
            raise
        _fail(f"this command needs {error.name}, which is not installed: pip install 'tlcli[train]'", 1)
    except MemoryError as error:
        _fail(_with_notes("out of memory", error), 1)
    except OSError as error:
        _fail(_with_notes(_describe(error), error), 1)


def _describe(error: OSError) -> str:
    """Format a system error as a message with the file, the reason, and a remedy if there is one."""
    where = error.filename
    if where is None and error.errno in _FULL:
        where = "standard output"
        _discard_standard_output()
    remedy = ": free disk space, then try again" if error.errno in _FULL else ""
    return f"{where}: {error.strerror}{remedy}" if where else str(error)


def _with_notes(message: str, error: BaseException) -> str:
    return "; ".join((message, *getattr(error, "__notes__", ())))


def _discard_standard_output() -> None:
    """Redirect standard output to the null device, so that Python does not report a failed flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> None:
    click.echo(f"Error: {printable(message)}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
