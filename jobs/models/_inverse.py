"""The inverse of a large symmetric matrix where it lies, on all cores, with the same bits on one core and on many.

Blocks of rows and columns are swept one after the other (Goodnight, "A Tutorial on the SWEEP Operator", The American
Statistician, 1979): n ** 3 operations, as many as LAPACK's potrf and potri take. Each product is one call of BLAS on one thread,
and which products there are depends on n alone; the number of cores decides only who does which. (LAPACK itself gives other
bits on two threads than on one.)
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri
from threadpoolctl import threadpool_limits

BLOCK = 512
"""Rows swept at a time: beside the matrix, two panels of n x BLOCK are in memory."""
TILE = 1024
"""Columns of a product at a time: it stays in the core's cache until it is subtracted."""


def invert(matrix: NDArray[np.float32], cores: int | None = None) -> None:
    """Put the inverse of a symmetric positive definite matrix (n x n, C order) in its place.

    Above the diagonal it need not be filled in. Raises ValueError where it is not positive definite to its precision.
    """
    blocks = [slice(start, start + BLOCK) for start in range(0, len(matrix), BLOCK)]
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores or os.cpu_count()) as pool:

        def every(work: Callable[[slice], None]) -> None:
            for _ in pool.map(work, blocks):
                pass

        for block in blocks:
            _sweep(matrix, block, every)
        for block in blocks:
            _finish(matrix, block)


def _sweep(matrix: NDArray[np.float32], block: slice, every: Callable[[Callable[[slice], None]], None]) -> None:
    """With D = A[k, k]^-1 and C = A[:, k]: A - C D C' outside k, C D in its columns and -D on its diagonal block.

    Only blocks on and below the diagonal are kept.
    """
    start = block.start
    columns = np.concatenate([matrix[block, :start].T, matrix[start:, block]])
    pivot = _small_inverse(columns[block]).astype(matrix.dtype)
    products = np.empty_like(columns)

    def multiply(rows: slice) -> None:
        np.matmul(columns[rows], pivot, out=products[rows])

    def subtract(rows: slice) -> None:
        for start in range(0, rows.stop, TILE):
            tile = slice(start, min(start + TILE, rows.stop))
            matrix[rows, tile] -= products[rows] @ columns[tile].T

    every(multiply)
    every(subtract)
    matrix[block, :start] = products[:start].T
    matrix[start:, block] = products[start:]
    matrix[block, block] = -pivot


def _finish(matrix: NDArray[np.float32], block: slice) -> None:
    """All blocks swept leave -A^-1 below the diagonal: its sign, and its mirror image."""
    below = matrix[block.start :, block]
    np.negative(below, out=below)
    matrix[block, block.start :] = below.T


def _small_inverse(block: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of one block, by Cholesky in float64."""
    factor, failed = dpotrf(block.astype(np.float64), lower=True)
    if not failed:
        inverse, failed = dpotri(factor, lower=True)
    if failed:
        raise ValueError("the matrix is not positive definite")
    lower = np.tril(inverse)
    return lower + np.tril(lower, -1).T
