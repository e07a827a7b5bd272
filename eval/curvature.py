"""The curvature of a loss around a model's parameters; see geometry.curvature."""

from geometry.curvature import critical_sharpness, hessian_trace, hessian_vector, top_eigenvalue

__all__ = ["critical_sharpness", "hessian_trace", "hessian_vector", "top_eigenvalue"]
