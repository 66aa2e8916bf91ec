"""Experiments: each script asks a question and answers it with a table, a CSV and a figure."""
