"""Checkpoints of training: whole or not at all, and never taken for those of another run.

A checkpoint is a folder such as step_00001000. Orbax writes the leaves; what they are comes beside
them, and last, in one stroke, the digests of all these files. So a checkpoint with no digests was
cut off, and one with other digests is damaged.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PRNGKeyArray

from jaxrnn import _check
from jaxrnn.training._step import Metrics, TrainState

try:
    import fcntl
except ImportError:  # on Windows, where nothing is locked
    fcntl = None

_LEAVES, _NAMES, _DIGESTS = "leaves", "leaves.json", "SHA256SUMS"
# With what stands there while they are written.
_OURS = re.compile(r"leaves(\.json|\.orbax-checkpoint-tmp.*)?|SHA256SUMS(\.unfinished)?")


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where `fit` writes checkpoints, to go on from the newest whole one when it is called again.

    A run that was killed, at any moment, and started again in the same way returns to the last bit
    what it would have returned. A checkpoint that is damaged, or whose writing was cut off, is
    passed over with a warning, and so is a folder of another program, which is never removed.
    If such a folder has the name of a checkpoint to come, that is an error before training starts.
    One of another run is an error: with a key, a number of batches, or parameters, a carry or an
    optimizer state to begin with that are others, such as another learning rate of
    `optax.inject_hyperparams`. What a loss or an optimizer computes is not in a checkpoint.

    It needs Orbax: `pip install "jaxrnn[checkpoints]"`.

    With several processes the first writes, and all read, so the directory must be one that they
    share. A run may go on with another number of devices or processes; then it is the same up to
    rounding.

    Args:
        directory: where to write, a folder for each checkpoint. `sha256sum -c SHA256SUMS` checks
            one. Other files in such a folder don't matter, but it is no longer removed then.
        every: how many steps lie between checkpoints. There is another after the last step.
        keep: how many whole checkpoints stay; older ones are removed. With 2 there is one to go
            back to if the newest gets damaged.

    Raises:
        TypeError: if the directory is no path, or a number no integer.
        ValueError: if a number is below 1, or the directory's path has a `[`, `*`, `?` or backslash
            in it.

    Example:
        >>> import jaxrnn
        >>> jaxrnn.training.Checkpoints("runs/first", every=500)
        Checkpoints(directory='runs/first', every=500, keep=2)
    """

    directory: str | os.PathLike[str]
    every: int = 1000
    keep: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.directory, str | os.PathLike):
            raise TypeError(f"directory: got {_check.describe(self.directory)}, expected a path")
        path = Path(self.directory).absolute().as_posix()
        if any(character in path for character in "[*?\\"):
            raise ValueError(
                f"directory: got {path!r}, expected a path without any of [ * ? \\, which "
                "TensorStore takes for a pattern"
            )
        _check.size("every", self.every)
        _check.size("keep", self.keep)


class Snapshot(NamedTuple):
    """All that a run goes on from, and that says which run it is: what a checkpoint holds."""

    key: PRNGKeyArray
    batches: np.ndarray | None
    start: np.ndarray
    state: TrainState
    history: Metrics


def digest(state: TrainState) -> np.ndarray:
    """Return the SHA-256 of a train state's numbers, which tells a run's start from another's."""
    sha = hashlib.sha256()
    for name, leaf in _named_leaves(state).items():
        sha.update(f"{name} {_check.describe(leaf)}".encode())
        sha.update(np.ascontiguousarray(_as_numpy(leaf)).tobytes())
    return np.frombuffer(sha.digest(), np.uint8)


@contextlib.contextmanager
def locked(checkpoints: Checkpoints | None) -> Iterator[None]:
    """Keep other processes from writing to the same directory; a lock ends with its process."""
    if checkpoints is None or fcntl is None or jax.process_index() != 0:
        yield
        return
    directory = Path(checkpoints.directory).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise OSError(
            f"checkpoints: got the directory {directory}, to which another run is writing, "
            "expected one of its own for each run"
        ) from None
    finally:
        os.close(descriptor)


def save(checkpoints: Checkpoints, snapshot: Snapshot) -> None:
    """Write a checkpoint, and remove those that are no longer expected."""
    leaves = _named_leaves(snapshot)
    # Orbax writes no empty arrays, which hold nothing anyway.
    arrays = {name: _as_numpy(leaf) for name, leaf in leaves.items() if leaf.size}
    if jax.process_index() == 0:
        directory, step = Path(checkpoints.directory).absolute(), int(snapshot.state.step)
        _write(_folder(directory, step), arrays, _described(leaves))
        # What is further on than this run was passed over by it; what has no digests was cut off.
        whole = [
            folder
            for folder in _folders(directory)
            if _step(folder) <= step and (folder / _DIGESTS).exists()
        ]
        for folder in set(_folders(directory)) - set(whole[-checkpoints.keep :]):
            if _is_ours(folder):
                try:
                    _remove(folder)
                except OSError as error:
                    warnings.warn(f"checkpoint {folder} stays: {error}", stacklevel=3)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("jaxrnn: a checkpoint is written")


def restore(checkpoints: Checkpoints, start: Snapshot) -> Snapshot:
    """Return the newest whole checkpoint, and `start` if there is none.

    Args:
        checkpoints: where they are.
        start: the run's own first snapshot.

    Returns:
        The snapshot to go on from.

    Raises:
        ValueError: if the newest whole checkpoint is of another run.
    """
    _orbax_checkpointer().close()  # to learn now, not after many steps, that it is not installed
    found = start
    for folder in reversed(_folders(Path(checkpoints.directory).absolute())):
        damage = _damage(folder)
        if damage is None:
            found = _load(folder, start)
            break
        warnings.warn(f"checkpoint {folder} is passed over: {damage}", stacklevel=3)
    if jax.process_count() > 1:
        multihost_utils.assert_equal(
            found.state.step,
            f"checkpoints: got other ones in other processes, expected {checkpoints.directory} to "
            "be a directory that they share",
        )
    return found


def check_writable(checkpoints: Checkpoints, done: int, steps: int) -> None:
    """Raise now, not after many steps, if checkpoints of the steps to come can't be written.

    Args:
        checkpoints: where to write them, and when.
        done: how many steps have been made.
        steps: how many there will be.

    Raises:
        OSError: if the directory can't be written to, or a folder of another program is in the way.
    """
    if jax.process_index() != 0:
        return
    directory = Path(checkpoints.directory).absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise OSError(
            f"checkpoints: got the directory {directory}, expected one to write to: {error}"
        ) from error
    for path in _numbered(directory):
        step = _step(path)
        due = done < step <= steps and (step % checkpoints.every == 0 or step == steps)
        if due and path == _folder(directory, step):
            _check_free(path)


def _orbax_checkpointer() -> Any:
    """Return Orbax's plain checkpointer, which waits for nobody: one process writes, each reads."""
    try:
        import orbax.checkpoint as ocp
    except ImportError:
        raise ImportError('checkpoints needs Orbax: pip install "jaxrnn[checkpoints]"') from None
    alone = jax.process_index()
    return ocp.Checkpointer(
        ocp.StandardCheckpointHandler(),
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=alone, active_processes={alone}, barrier_sync_key_prefix=f"jaxrnn{alone}"
        ),
    )


def _write(folder: Path, arrays: dict[str, np.ndarray], described: dict[str, str]) -> None:
    _check_free(folder)
    _remove(folder)
    folder.mkdir(parents=True)
    try:
        with _orbax_checkpointer() as orbax:
            orbax.save(folder / _LEAVES, arrays)
    except ValueError as error:  # what TensorStore raises on a full disk
        raise OSError(f"checkpoints: {folder} can't be written: {error}") from error
    (folder / _NAMES).write_text(json.dumps(described, indent=1))
    unfinished = folder / f"{_DIGESTS}.unfinished"
    lines = (f"{digest}  {name}\n" for name, digest in sorted(_digests(folder).items()))
    unfinished.write_text("".join(lines))
    unfinished.replace(folder / _DIGESTS)


def _load(folder: Path, start: Snapshot) -> Snapshot:
    """Load a whole checkpoint, if it is one of the run that `start` is the start of."""
    so_far = (_step(folder),)
    history = (jax.ShapeDtypeStruct(so_far, leaf.dtype) for leaf in start.history)
    expected = _named_leaves(start._replace(history=Metrics(*history)))
    ours, theirs = _described(expected), json.loads((folder / _NAMES).read_text())
    for name in [*ours, *theirs]:
        got, want = ours.get(name, "nothing"), theirs.get(name, "nothing")
        if got != want:
            raise ValueError(f"{name}: got {got}, expected {want} as in the checkpoint {folder}")
    with _orbax_checkpointer() as orbax:
        arrays = orbax.restore(folder / _LEAVES)
    for name in ("key", "batches"):
        if name in expected and not np.array_equal(_as_numpy(expected[name]), arrays[name]):
            raise ValueError(
                f"{name}: got {_as_numpy(expected[name])}, expected {arrays[name]} as in the "
                f"checkpoint {folder}"
            )
    if not np.array_equal(start.start, arrays["start"]):
        raise ValueError(
            "params: got parameters, a carry or optimizer settings, such as a learning rate, other "
            f"than those that the run of the checkpoint {folder} began with, expected the same, or "
            "another directory for another run"
        )
    leaves = [_like(leaf, arrays[name]) if leaf.size else leaf for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(start), leaves)


def _damage(folder: Path) -> str | None:
    """Say why a checkpoint isn't whole, or None if it is."""
    if not os.path.exists(folder / _DIGESTS):  # Path's own raises where one may not look
        return "its writing was cut off" if _is_ours(folder) else "it is not of jaxrnn"
    try:
        lines = (folder / _DIGESTS).read_text(errors="replace").splitlines()
        got = _digests(folder)
    except OSError as error:
        return f"its files can't be read: {error}"
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    damaged = sorted(name for name in {*got, *expected} if got.get(name) != expected.get(name))
    return f"its file {damaged[0]!r} is damaged" if damaged else None


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a checkpoint but that of the digests, and of no other."""

    def digest(path):
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return {
        path.relative_to(folder).as_posix(): digest(path)
        for path in [folder / _NAMES, *(folder / _LEAVES).rglob("*")]
        if path.is_file()
    }


def _folder(directory: Path, step: int) -> Path:
    return directory / f"step_{step:08d}"


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def _folders(directory: Path) -> list[Path]:
    """Return the folders of checkpoints, whole or not, the newest last."""
    return sorted((path for path in _numbered(directory) if path.is_dir()), key=_step)


def _numbered(directory: Path) -> list[Path]:
    """Return whatever is called as a checkpoint is."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [directory / name for name in names if re.fullmatch(r"step_\d+", name)]


def _is_ours(folder: Path) -> bool:
    """Say whether a folder has nothing but what is written here: others' are never removed."""
    if folder.is_symlink():  # to what somebody keeps elsewhere
        return False
    try:
        return all(_OURS.fullmatch(name) for name in os.listdir(folder))
    except OSError:  # a file, or a folder that nobody may look into
        return False


def _check_free(folder: Path) -> None:
    """Raise if what can't be removed has the name of a checkpoint that is to be written."""
    if os.path.lexists(folder) and not _is_ours(folder):
        raise FileExistsError(
            f"checkpoints: got a directory with {folder}, which is not of jaxrnn or has other "
            "files in it, expected one for its checkpoints alone"
        )


def _remove(folder: Path) -> None:
    # The digests first, so that what is left of a removal that was cut off is not called damaged.
    (folder / _DIGESTS).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _named_leaves(snapshot: Snapshot | TrainState) -> dict[str, Any]:
    """Return the leaves by name, such as params['kernel']."""
    leaves = jax.tree_util.tree_leaves_with_path(snapshot)
    names = (jax.tree_util.keystr(path) for path, _ in leaves)
    names = (name.removeprefix(".state").removeprefix(".history")[1:] for name in names)
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))


def _described(leaves: dict[str, Any]) -> dict[str, str]:
    return {name: _check.describe(leaf) for name, leaf in leaves.items()}


def _as_numpy(leaf: Any) -> np.ndarray:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _like(expected: Any, array: np.ndarray) -> Any:
    """Return what `_as_numpy` made an array of: a key, an array of JAX, or one of NumPy."""
    if jnp.issubdtype(expected.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(expected))
    return jnp.asarray(array) if isinstance(expected, jax.Array) else array
