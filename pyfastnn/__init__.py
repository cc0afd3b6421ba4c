"""Dense neural networks at hardware speed, straight from NumPy."""

from typing import TYPE_CHECKING

from . import activations, callbacks, datasets, initialisers, losses, optimizers
from .backends import (
    backends,
    get_backend,
    get_num_threads,
    set_backend,
    set_num_threads,
    use_backend,
)
from .backends.plan import BackendUnavailableError
from .callbacks import Callback, History
from .config import show_config
from .kernels import (
    activation_delta,
    dense_backward,
    dense_forward,
    dense_update,
    output_delta,
    sigmoid_delta,
)
from .mlp import MLP
from .optimizers import SGD, Adam

__version__: str

__all__ = [
    "MLP",
    "SGD",
    "Adam",
    "BackendUnavailableError",
    "Callback",
    "History",
    "activation_delta",
    "activations",
    "backends",
    "callbacks",
    "datasets",
    "dense_backward",
    "dense_forward",
    "dense_update",
    "get_backend",
    "get_num_threads",
    "initialisers",
    "losses",
    "optimizers",
    "output_delta",
    "set_backend",
    "set_num_threads",
    "show_config",
    "sigmoid_delta",
    "use_backend",
]


if not TYPE_CHECKING:  # to which every name would be an attribute

    def __getattr__(name):
        if name == "__version__":
            from importlib.metadata import version  # takes longer to import than all of this package

            return version("pyfastnn")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
