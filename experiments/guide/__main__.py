"""Run every page, and draw its pictures anew."""

import contextlib

from experiments.guide import PAGES, run

for page in PAGES:
    with contextlib.chdir(page.parent):
        for _, printed in run(page):
            print(printed, end="")
