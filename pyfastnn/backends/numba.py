"""The backend that Numba compiles at its first use; see ``jitted`` for what it is."""

from __future__ import annotations

from .plan import Backend, BackendUnavailableError


def load() -> Backend:
    try:
        import numba
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise BackendUnavailableError(
                f"backend 'numba' has no working package numba ({error})"
            ) from error
        raise BackendUnavailableError(
            "backend 'numba' has no package numba (pip install 'pyfastnn[numba]')"
        ) from None
    except Exception as error:  # whatever a package raises that does not suit its surroundings
        raise BackendUnavailableError(f"backend 'numba' has no working package numba ({error})") from error
    if numba.config.DISABLE_JIT:
        raise BackendUnavailableError("backend 'numba' has no compiler: NUMBA_DISABLE_JIT is set")
    from .jitted import NumbaBackend

    return NumbaBackend()
