"""The progress bar, where there is somebody to see it."""

from typing import Any

from jaxrnn import _check


class _NoBar:
    """Stands in for a progress bar where none is shown."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def update(self, count: int) -> None:
        pass

    def set_postfix(self, **values: Any) -> None:
        pass


def progress_bar(done: int, steps: int, progress: bool | None) -> Any:
    """Return tqdm's bar, or what stands in for it; `progress` is as in `fit`."""
    if progress is not None and not _check.flag("progress", progress):
        return _NoBar()
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if progress:
            raise ImportError("progress=True needs tqdm: pip install tqdm") from None
        return _NoBar()
    # tqdm takes `disable=None` as: show nothing where there is no terminal.
    return tqdm(initial=done, total=steps, unit="step", disable=None if progress is None else False)
