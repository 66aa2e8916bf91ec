"""The package as a stranger gets it: what importing costs, and what the wheel holds."""

import importlib.util
import inspect
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import jaxrnn

ROOT = Path(__file__).parents[1]


def python(code, executable=sys.executable, cwd=None):
    run = subprocess.run(
        [executable, "-c", code], capture_output=True, text=True, cwd=cwd, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_import_loads_nothing_heavy():
    heavy = {
        "optax",
        "orbax",
        "matplotlib",
        "tqdm",
        "sklearn",
        "torch",
        "keras",
        "flax",
        "haiku",
        "equinox",
    }
    loaded = python("import jaxrnn, sys; print(*sys.modules)", cwd=ROOT).split()
    assert not heavy & set(loaded)


def test_import_starts_no_backend_and_changes_no_configuration():
    code = """
import jax
before = dict(jax.config.values)
import jaxrnn
assert dict(jax.config.values) == before
# The platform can still be chosen, which JAX refuses to do once a backend has started.
jax.config.update("jax_platforms", "no_such_platform")
try:
    jax.devices()
except RuntimeError as error:
    print(error)
"""
    assert "no_such_platform" in python(code, cwd=ROOT)


MODULES = [jaxrnn, *(m for m in map(vars(jaxrnn).get, jaxrnn.__all__) if inspect.ismodule(m))]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_a_public_module_shows_public_names_only(module):
    assert dir(module) == sorted(set(module.__all__))
    assert not [name for name in dir(module) if name.startswith("_")]
    assert all(hasattr(module, name) for name in dir(module))


def test_the_top_is_small():
    assert len(dir(jaxrnn)) <= 32


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_public_names_have_docstrings_with_an_example(module):
    assert module.__doc__
    for name in module.__all__:
        value = getattr(module, name)
        ours = getattr(value, "__module__", "").startswith("jaxrnn")
        if not ours or not (inspect.isclass(value) or inspect.isfunction(value)):
            continue  # a module, a number, an initializer of JAX
        # NamedTuples and dataclasses that have none get their signature.
        assert value.__doc__, name
        assert not value.__doc__.startswith(f"{name}("), name
        # A report or result is made by the function beside it, whose example shows it.
        result = module in (jaxrnn.diagnostics, jaxrnn.training) and inspect.isclass(value)
        assert ">>>" in value.__doc__ or result, name


@pytest.mark.slow
def test_the_wheel_installs_and_imports_in_an_empty_environment(tmp_path):
    if importlib.util.find_spec("build") is None:
        pytest.skip("needs build, which comes with the extra 'dev'")
    dist = tmp_path / "dist"
    command = [sys.executable, "-m", "build", "--outdir", str(dist), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = dist.glob("*.whl")
    (sdist,) = dist.glob("*.tar.gz")
    assert f"-{jaxrnn.__version__}-" in wheel.name
    assert sdist.name == f"jaxrnn-{jaxrnn.__version__}.tar.gz"
    venv.create(tmp_path / "empty", with_pip=True)
    executable = str(tmp_path / "empty" / "bin" / "python")
    subprocess.run([executable, "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    code = """
import importlib.resources, jax, jaxrnn
assert importlib.resources.files("jaxrnn").joinpath("py.typed").is_file()
cell = jaxrnn.lstm(4)
print(jaxrnn.unroll(cell, cell.init(jax.random.key(0), 3), jax.numpy.ones((5, 3)))[1].shape)
"""
    assert python(code, executable, cwd=tmp_path).strip() == "(5, 4)"
