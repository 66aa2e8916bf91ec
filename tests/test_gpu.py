"""What only a GPU can show: the engines that are chosen there, and the comparison with cuDNN."""

import jax
import jax.numpy as jnp
import pytest

import jaxrnn
from experiments.benchmark import CONTENDERS, Problem
from tests.problems import problem
from tests.tolerances import CUDNN_RELATIVE, relative_error

pytestmark = pytest.mark.gpu

T, B, I, H = 20, 3, 5, 8


def test_loops_are_unrolled():
    cell = jaxrnn.lstm(H)
    params, inputs, _ = problem(cell, length=T, batch=(B,))
    assert jaxrnn.choose_engine(jaxrnn.gru(H, reset_after=False), inputs).engine == jaxrnn.scan(8)
    texts = [
        jax.jit(lambda params, engine=engine: jaxrnn.unroll(cell, params, inputs, engine=engine))
        .lower(params)
        .as_text()
        for engine in (jaxrnn.hoisted(), jaxrnn.hoisted(unroll=8), jaxrnn.hoisted(unroll=1))
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    "engine", [jaxrnn.scan(), jaxrnn.hoisted(), jaxrnn.hoisted(keep="products")], ids=str
)
def test_lstm_agrees_with_cudnn(engine):
    from jax.experimental import rnn

    cell = jaxrnn.lstm(H)
    params = cell.init(jax.random.key(0), I)
    inputs = jax.random.normal(jax.random.key(1), (T, B, I))

    def ours(params, inputs):
        outputs = jaxrnn.unroll(cell, params, inputs, engine=engine)[1]
        return jnp.square(outputs).sum(), outputs

    def theirs(params, inputs):
        kernels = params.kernel.T.ravel(), params.recurrent_kernel.T.ravel()
        weights = jnp.concatenate([*kernels, params.bias, jnp.zeros_like(params.bias)])
        zeros, lengths = jnp.zeros((1, B, H)), jnp.full(B, T, jnp.int32)
        outputs, *_ = rnn.lstm(  # pyright: ignore[reportGeneralTypeIssues]
            jnp.swapaxes(inputs, 0, 1),
            zeros,
            zeros,
            weights,
            lengths,
            input_size=I,
            hidden_size=H,
            num_layers=1,
            dropout=0.0,
            bidirectional=False,
            precision=jax.lax.Precision.HIGHEST,
        )
        outputs = jnp.swapaxes(outputs, 0, 1)
        return jnp.square(outputs).sum(), outputs

    got, wanted = (
        jax.jit(jax.value_and_grad(model, argnums=(0, 1), has_aux=True))(params, inputs)
        for model in (ours, theirs)
    )
    for a, b in zip(*map(jax.tree.leaves, (got, wanted)), strict=True):
        assert relative_error(a, b) < CUDNN_RELATIVE


@pytest.mark.parametrize("pass_", ["forward", "gradient"])
def test_cudnn_contends_in_the_benchmark(pass_):
    program = CONTENDERS["jax-cudnn"].prepare(Problem("lstm", T, B, I, H), pass_, 0)
    shapes = [leaf.shape for leaf in jax.tree.leaves(program.run())]
    if pass_ == "forward":
        assert shapes == [(1, B, H), (1, B, H), (B, T, H)]
    else:
        assert shapes == [(4 * H * (I + H + 2),), (B, T, I)]
