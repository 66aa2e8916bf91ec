"""What the tests of the README and of the guide's pages share."""

import re

import jaxrnn


def without_numbers(text):
    """Return a text's words, without what other machines may compute otherwise."""
    return re.sub(r"-?\d[\d.]*(e-?\d+)?", "#", text).split()


def names(text):
    """Return the names after `jaxrnn.` in a page's code marks."""
    return re.findall(r"`jaxrnn\.([a-zA-Z_.]+)", text)


def find(name):
    """Return what a dotted name of jaxrnn stands for."""
    value = jaxrnn
    for part in name.strip(".").split("."):
        value = getattr(value, part)
    return value
