import os
import re

# As experiments/__init__.py does, and as early.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest

from tests.cells import CELLS
from tests.tolerances import x64

# For the engine that divides the batch over devices; nothing else looks at the second.
jax.config.update("jax_num_cpu_devices", 2)

if jax.default_backend() == "gpu":
    # The default there rounds what it multiplies to TF32, 10 bits, which tests of 24 bits see.
    jax.config.update("jax_default_matmul_precision", "highest")

_compilations = 0


def _count(event: str, duration_secs: float, **_) -> None:
    global _compilations
    _compilations += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count)


@pytest.fixture(
    params=[
        pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.slow else [])
        for row in CELLS
    ]
)
def row(request):
    """Each row of the table of cells in turn."""
    return request.param


@pytest.fixture
def float64():
    """Run a test with float64 enabled, where two orders of summation agree to the last digits."""
    with x64():
        yield


@pytest.fixture
def compilations():
    """Return a function that says how many programs XLA has compiled so far."""
    return lambda: _compilations


def pytest_collection_modifyitems(config, items):
    if config.getoption("jaxtyping_packages", None):
        # Where annotations are checked, they are what refuses an argument of a wrong type.
        for item in items:
            if re.search("bad|wrong|refuse|not_a_|faulty|needs_functions|may_draw", item.name):
                item.add_marker(pytest.mark.skip(reason="passes wrong types on purpose"))
    if jax.default_backend() != "gpu":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))
