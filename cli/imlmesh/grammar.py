"""How the command line is built: nouns, verbs, the flags that all share, help with examples first.

The one rule: a noun's file is imported when the noun is used, so that help stays fast. Deliberately
absent: rich in help pages, which would triple their time.
"""

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import Annotated, Any, TypeVar, cast, get_args

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from imlmesh.settings import Output, settings

PROGRAM = "imlmesh"
#: set by the shell's completion script; its value says what is asked
COMPLETE_VARIABLE = "_IMLMESH_COMPLETE"

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _set(name: str) -> Callable[[Any], None]:
    def keep(value: Any) -> None:
        # A flag may stand before the noun or after the verb; absent in one place is not "no".
        if value:
            setattr(settings, name, value)

    return keep


def _output(value: str | None) -> None:
    if value is None:
        return
    if value not in get_args(Output):
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(get_args(Output))}")
    settings.output = cast("Output", value)


def _json(value: bool) -> None:
    if value:
        settings.output = "json"


def _option(*names: str, text: str, keep: Callable[[Any], None], metavar: str | None = None) -> Any:
    return typer.Option(
        *names,
        help=text,
        callback=keep,
        metavar=metavar,
        expose_value=False,
        is_eager=True,
        show_default=False,
    )


def _shared_flags(
    output: Annotated[
        Output | None,
        _option("-o", "--output", text="How to print data.", keep=_output),
    ] = None,
    json: Annotated[bool, _option("--json", text="Short for -o json.", keep=_json)] = False,
    quiet: Annotated[
        bool, _option("-q", "--quiet", text="Print data and errors alone.", keep=_set("quiet"))
    ] = False,
    verbose: Annotated[
        bool, _option("-v", "--verbose", text="Add tracebacks.", keep=_set("verbose"))
    ] = False,
    no_color: Annotated[
        bool, _option("--no-color", text="As with NO_COLOR=1.", keep=_set("no_color"))
    ] = False,
    home: Annotated[
        str | None,
        _option(
            "--home",
            text="Folder of the mesh; else $IMLMESH_HOME, else the user's data folder.",
            keep=_set("home"),
            metavar="FOLDER",
        ),
    ] = None,
) -> None:
    """Carry the flags that every verb takes."""


class _AsGiven:
    """Keeps typer from loading pydantic to turn a text into a text: 0.2 s of every call."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        return value


def _shared_params() -> list[Any]:
    flags = typer.Typer(add_completion=False, rich_markup_mode=None)
    flags.command()(_shared_flags)
    return [_keep_as_given(param) for param in get_command(flags).params]


def _write_help(page: Any, ctx: Any, formatter: Any) -> None:
    page.format_help_text(ctx, formatter)
    if page.epilog:
        with formatter.section("Examples"):
            for line in page.epilog.splitlines():
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
    formatter.write_paragraph()
    page.format_usage(ctx, formatter)
    page.format_options(ctx, formatter)


def _is_one_text(param: Any) -> bool:
    return param.type_descriptor.annotation is str and param.nargs == 1 and not param.multiple


def _keep_as_given(option: Any) -> Any:
    if option is not None:
        option._runtime_param = _AsGiven()
    return option


class ReaderLeft(Exception):
    """Who reads what we print (head, less) has gone. No OSError: typer would end those with 1, which
    means here that a run failed."""


class Verb(TyperCommand):
    """A command with the shared flags, whose help begins with what it does and examples."""

    def __init__(self, name: str | None, **attributes: Any) -> None:
        super().__init__(name, **attributes)
        for param in self.params:
            if _is_one_text(param):
                _keep_as_given(param)
        self.params.extend(_shared_params())

    def get_help_option(self, ctx: Any) -> Any:
        """The option --help."""
        return _keep_as_given(super().get_help_option(ctx))

    def invoke(self, ctx: Any) -> Any:
        """Carry it out; ReaderLeft."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as exc:
            raise ReaderLeft from exc

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write purpose, examples, usage and options."""
        _write_help(self, ctx, formatter)


class Noun(TyperGroup):
    """A group of verbs; knows the nearest verb to a wrong one."""

    def get_help_option(self, ctx: Any) -> Any:
        """The option --help."""
        return _keep_as_given(super().get_help_option(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write purpose, examples, usage and verbs."""
        _write_help(self, ctx, formatter)


class Root(Noun):
    """The command `imlmesh` itself; loads the file of a noun when it is named."""

    #: noun or lone verb -> one line of help
    nouns: dict[str, str] = {}  # noqa: RUF012 - set once, by `main`

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.params.extend(_shared_params())

    def list_commands(self, _ctx: Any) -> list[str]:
        """All nouns, in the order of the table."""
        return list(self.nouns)

    def get_command(self, _ctx: Any, cmd_name: str) -> Any:
        """The noun's group of verbs, or None."""
        if cmd_name not in self.nouns:
            return None
        return get_command(import_module(f"imlmesh.nouns.{cmd_name}").app)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As usual; a wrong noun is answered with the nearest one, before any file is loaded."""
        if args and args[0] not in self.nouns and not args[0].startswith("-"):
            near = get_close_matches(args[0], self.nouns, n=1)
            ctx.fail(
                f"no such command {args[0]!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, _ctx: Any, formatter: Any) -> None:
        """Write the table of nouns without loading their files."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.nouns.items()))


def noun(text: str, examples: str) -> typer.Typer:
    """A group of verbs, to be filled by `verb`."""
    app = typer.Typer(
        cls=Noun,
        help=text,
        epilog=examples,
        add_completion=False,
        rich_markup_mode=None,
        no_args_is_help=True,
    )
    app.callback()(_nothing)
    return app


def lone_verb() -> typer.Typer:
    """A command without a noun."""
    return typer.Typer(add_completion=False, rich_markup_mode=None)


def verb(
    app: typer.Typer, examples: str, name: str | None = None
) -> Callable[[_Function], _Function]:
    """Declare a function as a verb; it returns the exit code, or None for 0."""
    return app.command(name, cls=Verb, epilog=examples)


def _nothing() -> None:
    """A noun alone does nothing."""
