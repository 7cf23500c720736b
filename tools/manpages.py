"""Write the man pages in docs/man, from the words of --help and of the annotated configurations in configs/.

    python -m tools.manpages

The pages are kept in the tree, because a wheel is built where the program cannot run; a test finds them outdated.
They bear no date and no version: only a change of the words changes them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Final

import click

from cryprq_proxy.base.program import PROGRAM
from cryprq_proxy.cli import cli

ROOT: Final = Path(__file__).parents[1]
MAN: Final = ROOT / "docs" / "man"
COMMANDS: Final = MAN / f"{PROGRAM}.1"
CONFIGURATION: Final = MAN / f"{PROGRAM}.toml.5"

_KEY: Final = re.compile(r"#?([a-z][a-z0-9_]*) = ")
_TABLE: Final = re.compile(r"#?(\[+[a-z.]+\]+)$")
_WIDTH: Final = 1000
"""Of a line for click, so that it folds none: groff does."""

_FILES: Final = """\
.SH FILES
.TP
.I ~/.config/cryprq/client.toml
The client's configuration,
.BR cryprq-proxy.toml (5).
.TP
.I ~/.config/cryprq/exit.toml
The exit's configuration.
.TP
.I ~/.config/cryprq/identity
This machine's keys.
.TP
.I ~/.config/cryprq/authorized
The peers that the exit lets in.
"""
_STATUS: Final = """\
.SH EXIT STATUS
.TP
.B 0
Clean, also after Ctrl-C or SIGTERM of what runs until then.
.TP
.B 1
Everything that is not below.
.TP
.B 2
The command line or a configuration is wrong.
"""


def pages() -> dict[Path, str]:
    """The text of each page, by its file."""
    return {COMMANDS: commands_page(), CONFIGURATION: configuration_page()}


# --- cryprq-proxy(1) ---


def commands_page() -> str:
    """The program's flags, then one section for all commands and theirs."""
    context = click.Context(
        cli, info_name=PROGRAM, help_option_names=["-h", "--help"], max_content_width=_WIDTH
    )
    summary = next(_paragraphs(cli.help or "")).rstrip(".")
    parts = [
        _head(COMMANDS, summary),
        f".SH SYNOPSIS\n.B {text(PROGRAM)}\n[OPTIONS]\n.br\n.B {text(PROGRAM)}\nCOMMAND [OPTIONS] [ARGUMENTS]\n",
        f".SH DESCRIPTION\n{_prose(cli.help or '')}",
        f".SH OPTIONS\n{_options(cli, context)}",
        ".SH COMMANDS\n",
    ]
    parts += _commands(cli, context)
    return "".join([*parts, _FILES, _STATUS, ".SH SEE ALSO\n.BR cryprq-proxy.toml (5)\n"])


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    for name in sorted(group.commands):
        command = group.commands[name]
        inner = click.Context(command, info_name=name, parent=context, max_content_width=_WIDTH)
        yield f".SS {text(' '.join([inner.command_path.partition(' ')[2], *command.collect_usage_pieces(inner)]))}\n"
        yield _prose(command.help or "") + _options(command, inner)
        if isinstance(command, click.Group):
            yield from _commands(command, inner)


def _options(command: click.Command, context: click.Context) -> str:
    """All but --help, which stands among the program's own, and arguments, which the usage shows."""
    inherited = command.get_help_option_names(context) if context.parent else []
    made = ""
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record and not set(parameter.opts) & set(inherited):
            made += _item([record[0]], record[1])
    return made


# --- cryprq-proxy.toml(5) ---


def configuration_page() -> str:
    """Both roles' keys, in the order of the samples."""
    parts = [
        _head(CONFIGURATION, "configuration of the client and of the exit"),
        f".SH DESCRIPTION\nTwo files in TOML: client.toml for the proxy, exit.toml for {text(PROGRAM)} exit.\n",
        "Values shown are the defaults, or an example where there is none.\n",
    ]
    for role in ("client", "exit"):
        parts.append(f".SH {role.upper()}.TOML\n")
        parts += _annotations((ROOT / "configs" / f"{role}.toml").read_text(encoding="utf-8"))
    return "".join([*parts, ".SH SEE ALSO\n.BR cryprq-proxy (1)\n"])


def _annotations(sample: str) -> Iterator[str]:
    """Comments, and what stands below each: keys, a table's head, or nothing."""
    comment: list[str] = []
    for kind, group in groupby(sample.splitlines(), _kind):
        lines = list(group)
        if kind == "comment":
            comment = ["" if line == "#" else line.removeprefix("# ") for line in lines]
            continue
        if kind == "keys":
            yield _item([line.removeprefix("#") for line in lines], " ".join(comment))
        elif kind == "table":
            yield f".SS {text(lines[0].removeprefix('#'))}\n" + _prose("\n".join(comment))
        elif comment:
            yield _prose("\n".join(comment))
        comment = []


def _kind(line: str) -> str:
    if not line:
        return "blank"
    if _TABLE.match(line):
        return "table"
    if _KEY.match(line):
        return "keys"
    if line == "#" or line.startswith("# "):
        return "comment"
    raise ValueError(f"neither a comment nor a key nor a table: {line}")


# --- roff ---


def text(words: str) -> str:
    """`words` as roff prints them: no character is a command. What stands in back-ticks is bold."""
    escaped = words.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti").replace("^", "\\(ha")
    escaped = escaped.replace("'", "\\(aq").replace('"', "\\(dq")
    escaped = re.sub(r"`([^`\n]+)`", r"\\fB\1\\fR", escaped)
    return re.sub(r"^\.", r"\\&.", escaped, flags=re.MULTILINE)


def _head(file: Path, summary: str) -> str:
    name, section = file.stem, file.suffix[1:]
    summary = summary[:1].lower() + summary[1:]
    return (
        f'.\\" Written by tools/manpages.py.\n.TH "{text(name)}" {section} "" "{PROGRAM}"\n'
        f".SH NAME\n{text(name)} \\- {text(summary)}\n"
    )


def _item(tags: list[str], words: str) -> str:
    head, *others = (f"\\fB{text(tag)}\\fR\n" for tag in tags)
    return f".TP\n{head}{''.join(f'.TQ\n{other}' for other in others)}{text(words) or '\\&'}\n"


def _paragraphs(words: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(words)):
        yield paragraph if paragraph.startswith("\b") else " ".join(paragraph.split())


def _prose(words: str) -> str:
    """Paragraphs; one that begins with \\b, as click has it, keeps its lines."""
    made = ""
    for paragraph in _paragraphs(words):
        if paragraph.startswith("\b"):
            made += f".PP\n.nf\n{text(paragraph.removeprefix('\b').strip('\n'))}\n.fi\n"
        elif paragraph:
            made += f".PP\n{text(paragraph)}\n"
    return made


if __name__ == "__main__":
    MAN.mkdir(exist_ok=True)
    for file, page in pages().items():
        file.write_text(page, encoding="utf-8")
