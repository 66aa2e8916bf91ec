"""Constructors of frozen records: arguments checked, equal settings give the same object.

JAX compiles a program anew for each new static argument, so two records made from the same settings
should be one. The cache holds them weakly: a record that nobody uses any more is freed. A record
also remembers how it was made, so that it can be copied and pickled though it is made of closures.
"""

import functools
import importlib
import inspect
import sys
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
Record = TypeVar("Record", bound="Rebuildable")


class Rebuildable:
    """A frozen record: copies are the record itself, and a pickle is the call that made it."""

    __slots__ = ()

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __reduce__(self) -> Any:
        made_by = getattr(self, "_made_by", None)
        if made_by is None:
            return super().__reduce__()
        constructor, arguments, settings = made_by
        arguments = tuple(_by_name(value) for value in arguments)
        return _call, (constructor, arguments, {k: _by_name(v) for k, v in settings.items()})


def memoized(
    **checks: Callable[[str, Any], Any],
) -> Callable[[Callable[P, Record]], Callable[P, Record]]:
    """Decorate a constructor: check its arguments, and make one record for equal settings.

    Args:
        **checks: for each argument to check, a function `(name, value) -> value` that raises, or
            returns the value in its normal form. Values must be hashable then.
    """

    def decorate(construct: Callable[P, Record]) -> Callable[P, Record]:
        signature = inspect.signature(construct)
        records: weakref.WeakValueDictionary[Any, Record] = weakref.WeakValueDictionary()

        @functools.wraps(construct)
        def constructor(*arguments: P.args, **settings: P.kwargs) -> Record:
            bound = signature.bind(*arguments, **settings)
            bound.apply_defaults()
            for name, check in checks.items():
                bound.arguments[name] = check(name, bound.arguments[name])
            key = tuple(bound.arguments.values())
            record = records.get(key)
            if record is None:
                record = construct(*bound.args, **bound.kwargs)
                object.__setattr__(record, "_made_by", (constructor, arguments, settings))
                records[key] = record
            return record

        return constructor

    return decorate


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], settings: dict) -> Any:
    return function(*arguments, **settings)


class _Named(NamedTuple):
    """Stands for a function in a pickle: where it is found."""

    module: str
    name: str

    def __reduce__(self) -> Any:
        return _find, tuple(self)


def _by_name(value: Any) -> Any:
    """Return a stand-in for a jitted function such as `jax.nn.relu`, which pickle doesn't find."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not callable(value) or module is None or name is None or module == "__main__":
        return value
    found = getattr(sys.modules.get(module), name, None)
    return _Named(module, name) if found is value else value


def _find(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)
