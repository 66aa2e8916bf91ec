"""What only a GPU can show: the engines that are chosen there, and the contender that needs one."""

import jax
import pytest

import jaxrnn
from experiments.benchmark._contenders import CONTENDERS, Problem
from tests.problems import problem

pytestmark = pytest.mark.gpu

T, B, I, H = 24, 3, 5, 8


def test_loops_are_unrolled():
    cell = jaxrnn.lstm(H)
    params, inputs, _ = problem(cell, length=T, batch=(B,))
    assert jaxrnn.engines.choose_engine(
        jaxrnn.gru(H, reset_after=False), inputs
    ).engine == jaxrnn.engines.scan(8)
    texts = [
        jax.jit(lambda params, engine=engine: jaxrnn.unroll(cell, params, inputs, engine=engine))
        .lower(params)
        .as_text()
        for engine in (
            jaxrnn.engines.hoisted(),
            jaxrnn.engines.hoisted(unroll=8),
            jaxrnn.engines.hoisted(unroll=1),
        )
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("pass_", ["forward", "gradient"])
def test_cudnn_contends_in_the_benchmark(pass_):
    program = CONTENDERS["jax-cudnn"].prepare(Problem("lstm", T, B, I, H), pass_, 0)
    shapes = [leaf.shape for leaf in jax.tree.leaves(program.run())]
    if pass_ == "forward":
        assert shapes == [(1, B, H), (1, B, H), (B, T, H)]
    else:
        assert shapes == [(4 * H * (I + H + 2),), (B, T, I)]
