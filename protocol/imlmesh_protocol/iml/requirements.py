"""Versions of modules that a plan asks for: PEP 440 specifiers such as ">=0.1,<2".

The one rule: an action runs only where its module satisfies the plan. A pre-release counts as the
version that it is. Deliberately absent: choosing among versions.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from imlmesh_protocol.iml.builder import pointer_of
from imlmesh_protocol.iml.findings import Findings
from imlmesh_protocol.manifest import Manifest


@lru_cache(maxsize=1_024)
def satisfies(version: str, specifier: str) -> bool:
    """Whether a module of this version may serve a plan with this (valid) specifier.

    A version that PEP 440 does not know satisfies no comparison but "===".
    """
    # importing packaging takes 20 ms or more; a plan without requirements needs none
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(version, prereleases=True)


def check_requirements(
    data: Mapping[str, Any], manifests: Sequence[Manifest], findings: Findings
) -> dict[str, str]:
    """The requirements that some manifest satisfies; plan.requirement, module.version.

    A module that nobody has is not reported here: only its actions would miss it.
    """
    written = data.get("module_requirements")
    satisfied: dict[str, str] = {}
    for module, specifier in written.items() if isinstance(written, dict) else ():
        if not isinstance(specifier, str):
            continue
        pointer = pointer_of("module_requirements", module)
        if not _is_specifier(specifier):
            message = f'"{specifier}" says no version of the module "{module}"'
            findings.error("plan.requirement", pointer, message)
            continue
        versions = sorted({m.modules[module].version for m in manifests if module in m.modules})
        if any(satisfies(version, specifier) for version in versions):
            satisfied[module] = specifier
        elif versions:
            message = f'the module "{module}" is there in {", ".join(versions)}, not in {specifier}'
            findings.error("module.version", pointer, message)
    return satisfied


def _is_specifier(text: str) -> bool:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        SpecifierSet(text)
    except InvalidSpecifier:
        return False
    return True
