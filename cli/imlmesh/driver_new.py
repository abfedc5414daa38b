"""A driver package of somebody's own, made from examples/driver by its name.

The one rule: what is written works as it is, with tests that pass; nothing that exists is written
over. Deliberately absent: a second copy of the package; the example is the template.
"""

import keyword
import re
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from imlmesh.shipped import shipped
from imlmesh_drivers.registry import builtin_modules
from imlmesh_protocol.errors import InputError

#: the module of the example; its other names are made of it
_EXAMPLE = "lamp"
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_NAME_CHARS = 40  # it stands in module, package and class names


def class_name(module: str) -> str:
    """`rain_gauge` → `RainGauge`, which begins the name of its class."""
    return "".join(part.capitalize() for part in module.split("_"))


def package_name(module: str) -> str:
    """`rain_gauge` → `imlmesh-driver-rain-gauge`."""
    return f"imlmesh-driver-{module.replace('_', '-')}"


def install_words(folder: Path) -> str:
    """What installs the package of `folder`, and pytest, beside this imlmesh."""
    python = shlex.quote(sys.executable)
    # a venv of uv has no pip of its own, and another one would install elsewhere
    pip = f"{python} -m pip install" if find_spec("pip") else f"uv pip install --python {python}"
    return f"{pip} -e {shlex.quote(str(folder))} pytest"


def new_driver(module: str, folder: Path) -> list[Path]:
    """Write the package of a driver for `module` into `folder`; the files, relative to it.

    InputError `name.invalid` for what is no module of one's own, `folder.exists`.
    """
    _check_name(module)
    template = shipped("examples/driver", "pyproject.toml").parent
    try:
        folder.mkdir(parents=True)
    except FileExistsError as exc:
        raise InputError("folder.exists", f"{folder} exists already") from exc
    except OSError as exc:
        raise InputError("folder.exists", f"{folder}: {exc.strerror}") from exc
    written = []
    try:
        for source in sorted(template.rglob("*")):
            if source.is_file() and "__pycache__" not in source.parts:
                place = Path(_renamed(str(source.relative_to(template)), module))
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                text = source.read_text(encoding="utf-8")
                (folder / place).write_text(_renamed(text, module), encoding="utf-8")
                written.append(place)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return written


def _check_name(module: str) -> None:
    hint = "for example: kettle, rain_gauge"
    if not _NAME.fullmatch(module) or len(module) > _NAME_CHARS or keyword.iskeyword(module):
        text = f"{module[:80]!r} is no name of a module: at most {_NAME_CHARS} of a-z, 0-9 and _"
        raise InputError("name.invalid", text, hint=hint)
    if module in builtin_modules():
        text = f"imlmesh serves the module {module!r} itself, and no other driver may"
        raise InputError("name.invalid", text, hint=hint)


def _renamed(text: str, module: str) -> str:
    names = {
        package_name(_EXAMPLE): package_name(module),
        class_name(_EXAMPLE): class_name(module),
        _EXAMPLE: module,
    }
    return re.sub("|".join(names), lambda found: names[found[0]], text)
