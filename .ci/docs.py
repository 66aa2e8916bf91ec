#!/usr/bin/env python3
"""Gather the site's pages in a folder: the README, the experiments and guide, and the API's pages.

The folder is laid out as the checkout is, so that links hold in both; a file that a page links to
goes with it. The API has a page for what stands at the package's top, and one for each public
module.
"""

import argparse
import importlib
import inspect
import pkgutil
import re
import shutil
from pathlib import Path

import jaxrnn

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "experiments/**/*.md", ".github/*.md")


def public_modules() -> list[str]:
    """Return the names of the package's modules that begin with no underscore."""
    return ["jaxrnn"] + [
        f"jaxrnn.{module.name}"
        for module in pkgutil.iter_modules(jaxrnn.__path__)
        if not module.name.startswith("_")
    ]


def public_names(module: str) -> list[str]:
    """Return a module's public names that are functions or classes."""
    namespace = importlib.import_module(module)
    names = getattr(namespace, "__all__", dir(namespace))
    return [
        name
        for name in names
        if inspect.isroutine(getattr(namespace, name)) or inspect.isclass(getattr(namespace, name))
    ]


def api_page(module: str) -> str:
    """Return a module's page: its own docstring, then those of its public names."""
    names = "".join(f"\n        - {name}" for name in public_names(module))
    return f"# {module}\n\n::: {module}\n    options:\n      members:{names}\n"


def linked(source: Path) -> list[Path]:
    """Return the files of the checkout that a page links to."""
    links = re.findall(r"\]\(([^)#:]+)", source.read_text(encoding="utf-8"))
    return [path for link in links if (path := (source.parent / link).resolve()).is_file()]


def main() -> None:
    """Write all pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write; what is there is removed")
    folder = parser.parse_args().folder
    shutil.rmtree(folder, ignore_errors=True)
    pages = [page for pattern in PAGES for page in ROOT.glob(pattern)]
    for source in {*pages, *(path for page in pages for path in linked(page))}:
        target = folder / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    api = folder / "api"
    api.mkdir()
    for module in public_modules():
        (api / f"{module}.md").write_text(api_page(module), encoding="utf-8")


if __name__ == "__main__":
    main()
