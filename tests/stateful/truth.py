"""What tokens a request may have been given, across versions of the weights, by the ledger device's own arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quiesce.stateful.driver import VOCAB_SIZE
from quiesce.stateful.ledger_device import answer

Span = tuple[int, int, int]
"""(number of the version, start, end), half-open over the generated tokens."""


def assert_tokens_are_true(
    name: str, prompt: Sequence[int], tokens: Sequence[int], spans: Sequence[Span], key: int = 0
) -> None:
    """Checks each token against the versions its span and those before allow.

    KV is written under the version of its step and stays, or all of it is computed anew under the present one. So the context of a
    token is what the context of the last one was, a position on, or all of the present version.

    Raises:
        AssertionError: no history of versions gives these tokens.
    """
    if [place for _, start, end in spans for place in range(start, end)] != list(range(len(tokens))):
        raise AssertionError(f"{name}: the spans {spans} do not cover {len(tokens)} tokens")
    versions = [number for number, start, end in spans for _ in range(start, end)]
    context = list(prompt)
    histories: set[tuple[int, ...]] = set()
    for place, (token, version) in enumerate(zip(tokens, versions, strict=True)):
        found = {(version,) * len(context), *((*history, version) for history in histories)}
        if place == 0:  # parts of the prompt may have been computed before
            found |= {
                (*[older] * length, *[version] * (len(context) - length))
                for older in range(version)
                for length in range(len(context))
            }
        ids = np.array(context, np.int64)
        positions = np.arange(len(context))
        histories = {h for h in found if answer(ids, positions, np.array(h, np.int64), key, VOCAB_SIZE) == token}
        if not histories:
            raise AssertionError(f"{name}: token {place} is {token}, which no history gives; spans {spans}")
        context.append(token)
