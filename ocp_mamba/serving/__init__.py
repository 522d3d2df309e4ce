"""Serving a model: the MLflow pyfunc and the checks on a request.

`ServedLVM` is importable from here, because models registered by earlier versions import it so.
"""

from ocp_mamba.serving.pyfunc import ServedLVM, save_pyfunc

__all__ = ["ServedLVM", "save_pyfunc"]
