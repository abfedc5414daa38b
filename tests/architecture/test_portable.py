"""Nothing of the machine it was made on stands in the repository: registries, home folders, paths."""

import configparser
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from source_tree import ROOT, own_files, text_of

# All of these begin with a letter that is looked for as such: ten times as fast as a condition.
# Public registries; the dots are escaped, so this file does not hold their names either.
REGISTRIES = re.compile(
    r"pypi\.(?:org|python)|pythonhosted\.org|registry\.npmjs|crates\.io|proxy\.golang|piwheels\.org"
)
HOME_PATH = re.compile(r"/(?<![\w.$}]/)(?:(?:home|Users)/[A-Za-z0-9]|root/)")
TRACKER = re.compile(r"issue\s+#?\d|co-authored-by:", re.IGNORECASE)


def configured_registries() -> Iterator[str]:
    """Names of the machines that this machine's pip and uv fetch from."""
    values = [value for name, value in os.environ.items() if re.match(r"(UV|PIP)_.*INDEX", name)]
    files = ["/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf"]
    config = configparser.ConfigParser(interpolation=None, strict=False)
    config.read([Path(file).expanduser() for file in files])
    for section in config.sections():
        values += [value for name, value in config.items(section) if "index-url" in name]
    for value in values:
        for url in value.split():
            name = urlsplit(url).hostname or ""
            if "." in name and not name.startswith("127."):
                yield name


def assert_absent(pattern: re.Pattern[str]) -> None:
    """No file of the repository but this one has a match."""
    found = []
    for path in own_files():
        if path == Path(__file__).resolve():
            continue
        text = text_of(path)
        for match in pattern.finditer(text):
            number = text.count("\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(ROOT)}:{number} {match.group()!r}")
    assert not found, "\n".join(found)


def test_no_registry_is_named() -> None:
    names = [re.escape(name) for name in configured_registries()]
    assert_absent(re.compile("|".join([REGISTRIES.pattern, *names])))


def test_no_path_of_one_machine() -> None:
    here = "|".join(re.escape(f"{path}/".removeprefix("/")) for path in (ROOT, Path.home()))
    assert_absent(HOME_PATH)
    assert_absent(re.compile(f"/(?:{here})"))


def test_files_speak_of_the_product_alone() -> None:
    assert_absent(TRACKER)
