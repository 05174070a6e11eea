"""Argument parsing shared by all commands: option names from other tools, repeated options, and option groups in help texts."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from tlcli.cli.vocabulary import ADVICE, ALIASES, AS_ARGUMENT, COMMAND_ADVICE, COMMAND_ALIASES, COMMAND_FLAGS, SUGGESTED

_WITH_COMMAS = frozenset({"classes", "metrics", "clients", "rates"})


class Command(click.Command):
    """Command that accepts common alternative names of its options and rejects single-valued options that are given more than once.

    click would silently keep the last of several values.
    """

    def __init__(self, *arguments: Any, groups: Mapping[str, Sequence[str]] | None = None, **keywords: Any) -> None:
        """Create a command.

        Args:
            arguments, keywords: passed to `click.Command`.
            groups: parameter names under each heading of the help text; all other parameters are listed under `Options`.
        """
        super().__init__(*arguments, **keywords)
        self.groups = groups or {}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments.

        Raises:
            UsageError: an option is unknown or repeated. For an unknown option, the message suggests the closest match.
        """
        args = _our_spelling(self, args)
        try:
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        except click.NoSuchOption as error:
            raise _unknown_option(self, error, ctx) from error
        for parameter, count in Counter(order).items():
            if count > 1 and _takes_one_value(parameter):
                separated = "; separate several with commas" if parameter.name in _WITH_COMMAS else ""
                raise click.UsageError(f"{'/'.join(_names(parameter))} is given {count} times: it takes one value{separated}", ctx)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options grouped under their headings."""
        heading = {name: title for title, names in self.groups.items() for name in names}
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in (*self.groups, "Options")}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections[heading.get(parameter.name or "", "Options")].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def unknown_command(name: str, known: Iterable[str]) -> str:
    """Return the error message for an unknown command, with a suggestion if there is one."""
    known = list(known)
    if name in COMMAND_ALIASES:
        return f"no such command {name!r}: type `tlcli {COMMAND_ALIASES[name]}`"
    near = difflib.get_close_matches(name.lower().replace("_", "-"), [*known, *COMMAND_ALIASES], n=1)
    if near:
        return f"no such command {name!r}: did you mean `tlcli {COMMAND_ALIASES.get(near[0], near[0])}`?"
    return f"no such command {name!r}: expected one of {', '.join(known)}"


def _takes_one_value(parameter: click.Parameter) -> bool:
    if not isinstance(parameter, click.Option) or parameter.multiple or parameter.count:
        return False
    return not parameter.is_flag or bool(parameter.secondary_opts)


def _names(parameter: click.Parameter) -> list[str]:
    return [max(options, key=len) for options in (parameter.opts, parameter.secondary_opts) if options]


def _options(command: click.Command) -> dict[str, click.Option]:
    return {
        name: option for option in command.params if isinstance(option, click.Option) for name in (*option.opts, *option.secondary_opts)
    }


def _our_spelling(command: click.Command, args: list[str]) -> list[str]:
    """Replace underscores and aliases in option names with the names that this command uses."""
    known = _options(command)
    spelled: list[str] = []
    rest = iter(args)
    for argument in rest:
        if argument == "--":
            return [*spelled, argument, *rest]
        name, equals, value = argument.partition("=")
        if not name.startswith("-") or len(name) < 2:
            spelled.append(argument)
            continue
        if not name.startswith("--") and len(name) > 2 and (meant := _ours(command, "-" + name, known)):
            raise click.UsageError(f"no such option {name}: did you mean {meant}?")
        if (command.name, name) in AS_ARGUMENT:
            spelled += [value] if equals else []
            continue
        ours = _ours(command, name, known) or name
        spelled.append(ours + equals + value)
        if not equals and ours in known and not known[ours].is_flag:
            spelled += [following for following in (next(rest, None),) if following is not None]
    return spelled


def _ours(command: click.Command, name: str, known: Mapping[str, click.Option]) -> str | None:
    if name in known:
        return name
    dashed = name.lower().replace("_", "-")
    if dashed in known:
        return dashed
    if dashed in SUGGESTED or (str(command.name), dashed) in COMMAND_ADVICE:
        return None
    return COMMAND_FLAGS.get((str(command.name), dashed)) or next((ours for ours in ALIASES.get(dashed, ()) if ours in known), None)


def _unknown_option(command: click.Command, error: click.NoSuchOption, ctx: click.Context) -> click.UsageError:
    known = _options(command)
    name = error.option_name
    dashed = name.lower().replace("_", "-")
    if advice := COMMAND_ADVICE.get((str(command.name), dashed)) or ADVICE.get(dashed):
        return click.UsageError(f"no such option {name}: {advice}", ctx)
    candidates = {**{ours: ours for ours in known}, **{alias: ours[0] for alias, ours in ALIASES.items() if ours[0] in known}}
    if near := [dashed] if dashed in candidates else difflib.get_close_matches(dashed, candidates, n=1):
        return click.UsageError(f"no such option {name}: did you mean {candidates[near[0]]}?", ctx)
    return click.UsageError(f"no such option {name}: `{ctx.command_path} --help` lists them", ctx)
