"""Every parser with the properties that it keeps for any input.

`targets.py` says what each is given and what must hold; `tests/faults/test_fuzzing.py` tries fresh
inputs and the kept ones in CI; `python -m tests.faults.fuzz TARGET SECONDS` looks for more with
coverage guidance (atheris). What it finds is written to corpus/TARGET/, for a person to keep.
"""
