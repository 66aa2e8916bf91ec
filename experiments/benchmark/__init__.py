"""How fast is jaxrnn, beside other frameworks and beside the machine's own limit?

`python -m experiments.benchmark COMMAND`, and `COMMAND --help` for its options:

- `shapes`: the engines, other frameworks and PyTorch, forward and gradient; with `--against PATH`
  two checkouts of jaxrnn instead.
- `scaling`: time and memory of a gradient against the length of the sequence.
- `training`: characters per second of a whole training step.
- `loss`: the gradient of a cross-entropy over every step, added up on the way or all at once.
- `sweep`: many networks trained at once against one.
- `streaming`: a step of one sequence against the same equations written by hand.
- `report`: the tables of all of these as Markdown, from their CSV files.

Contenders take turns within one process, in a new order each round, so that whatever else the
machine does hits all alike. Times are medians, and compile time stands apart.
"""
