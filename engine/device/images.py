"""Tensors in safetensors images that came in a call or through shared memory."""

from __future__ import annotations

from collections.abc import Sequence

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from quiesce.engine.errors import InvalidRequest


def tensors_in(field: str, images: Sequence[bytes]) -> dict[str, Tensor]:
    """The tensors of all images by name; a later one of a name takes the place of an earlier.

    Raises:
        InvalidRequest: an image is none; names the field that it came in.
    """
    found: dict[str, Tensor] = {}
    for image in images:
        try:
            found |= load(image)
        except SafetensorError as error:
            raise InvalidRequest(field, f"is no safetensors image: {error}") from None
    return found
