"""`imlmesh completion`: the shell completes commands and flags."""

from typing import Annotated

import typer

from imlmesh.grammar import COMPLETE_VARIABLE, PROGRAM, noun, verb

app = noun(
    "Let the shell complete commands.",
    """\
imlmesh completion install                      for the shell of this terminal
imlmesh completion fish > ~/.config/fish/completions/imlmesh.fish""",
)


@verb(app, "imlmesh completion bash > ~/.local/share/bash-completion/completions/imlmesh")
def bash() -> None:
    """Print the script for bash."""
    _print("bash")


@verb(app, "imlmesh completion zsh > ~/.zfunc/_imlmesh")
def zsh() -> None:
    """Print the script for zsh."""
    _print("zsh")


@verb(app, "imlmesh completion fish > ~/.config/fish/completions/imlmesh.fish")
def fish() -> None:
    """Print the script for fish."""
    _print("fish")


@verb(app, "imlmesh completion install\nimlmesh completion install zsh")
def install(
    shell: Annotated[
        str | None, typer.Argument(metavar="[SHELL]", help="bash, zsh or fish; else this one.")
    ] = None,
) -> None:
    """Write the script where the shell looks for it; bash and zsh get a line in their rc file."""
    from typer.completion import install as install_script  # type: ignore[attr-defined]

    from imlmesh.render import say, write
    from imlmesh_protocol.errors import InputError

    name = shell or _this_shell()
    if name not in ("bash", "zsh", "fish"):
        hint = "name one: bash, zsh or fish"
        raise InputError("usage", f"no completion for the shell {name!r}", hint=hint)
    _, path = install_script(name, PROGRAM, COMPLETE_VARIABLE)
    write(str(path))
    say("new terminals have it")


def _this_shell() -> str:
    import shellingham  # type: ignore[import-untyped]

    try:
        return str(shellingham.detect_shell()[0])
    except shellingham.ShellDetectionFailure:
        return "unknown"


def _print(shell: str) -> None:
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    script = get_completion_script(prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE, shell=shell)
    print(script)
