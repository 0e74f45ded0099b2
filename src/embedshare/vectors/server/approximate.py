"""FAISS's approximate structures: built once over a set of rows, measured against exact search, then
read-only."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from embedshare.errors import MissingDependency
from embedshare.vectors import exact, kinds

#: The extent of a search, the smallest first: the first that reaches TARGET is used.
EFFORTS = {kinds.HNSW: (64, 128, 256, 512, 1024), kinds.IVF_PQ: (16, 32, 64, 128, 256)}
#: The target recall at 10, on vectors of the set itself; an outside query gets a little less.
TARGET = 0.99
#: The number of the set's vectors whose neighbours are searched.
SAMPLE = 200
_AT = 10
#: IVF,PQ re-ranks this many candidates for each requested one, by 8 bits a value.
_REFINED = 20
#: The share of the set beyond which a search is exact: a graph's walk would cost as much, and find less.
_WIDE = 0.05


class Approximate:
    """Rows searched by a graph (HNSW) or by codes (IVF,PQ, re-ranked by finer codes).

    Immutable, so any number of threads may search it. `recall`: at 10, against exact search.
    """

    def __init__(self, kind: str, rows: np.ndarray, metric: str) -> None:
        self.kind = kind
        self.count, self.dimension = rows.shape
        self._metric = metric
        self._index = _index(kind, rows, metric)
        self.recall = 0.0
        for effort in EFFORTS[kind]:
            self._effort = effort
            self.recall = self._measured(rows)
            if self.recall >= TARGET:
                break

    @property
    def nbytes(self) -> int:
        """Its approximate size."""
        return kinds.bytes_of(self.kind, self.count, self.dimension)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """`exact.search`; with k near the number of rows it is exact, or as near as codes allow."""
        if k <= max(_AT, _WIDE * self.count):
            scores, positions = self._index.search(queries, k, params=self._parameters(k))
            if (positions >= 0).all():  # a graph may not reach this many, nor a few lists hold them
                return scores, positions
        if self.kind == kinds.HNSW:
            return exact.search(self._rows_in_graph(), queries, k, self._metric)
        scores, positions = self._index.search(queries, k, params=self._parameters(k, everywhere=True))
        return scores, positions

    def _rows_in_graph(self) -> np.ndarray:
        faiss = exact.faiss()
        stored = faiss.downcast_index(self._index.storage).get_xb()
        rows: np.ndarray = faiss.rev_swig_ptr(stored, self.count * self.dimension)
        return rows.reshape(self.count, self.dimension)

    def _parameters(self, k: int, everywhere: bool = False) -> Any:
        faiss = exact.faiss()
        if self.kind == kinds.HNSW:
            return faiss.SearchParametersHNSW(efSearch=max(self._effort, k))
        lists = faiss.extract_index_ivf(self._index.base_index).nlist
        probed = faiss.SearchParametersIVF(nprobe=lists if everywhere else min(lists, self._effort))
        refined = min(float(_REFINED), self.count / max(1, k))
        return faiss.IndexRefineSearchParameters(k_factor=refined, base_index_params=probed)

    def _measured(self, rows: np.ndarray) -> float:
        """The share found of the sample's ten nearest neighbours; equally near ones count."""
        dice = np.random.default_rng(0)
        sample = rows[np.sort(dice.choice(self.count, min(SAMPLE, self.count), replace=False))]
        k = min(_AT + 1, self.count)  # each is its own nearest, which does not count
        _, found = self.search(sample, k)
        truth, _ = exact.search(rows, sample, k, self._metric)
        better = 1.0 if kinds.higher_is_better(self._metric) else -1.0
        scores = _scores(rows, sample, found, self._metric)
        hits = (better * scores >= better * truth[:, -1:] - 1e-5).sum(axis=1)
        return float(np.clip(hits - 1, 0, k - 1).mean() / max(1, k - 1))


def _scores(rows: np.ndarray, queries: np.ndarray, positions: np.ndarray, metric: str) -> np.ndarray:
    """The true scores of the results: codes give approximate ones."""
    neighbours = rows[positions]
    if kinds.higher_is_better(metric):
        products: np.ndarray = np.einsum("qkd,qd->qk", neighbours, queries)
        return products
    squared: np.ndarray = ((neighbours - queries[:, None]) ** 2).sum(axis=2)
    return squared


def _index(kind: str, rows: np.ndarray, metric: str) -> Any:
    faiss = exact.faiss()
    if faiss is None:
        raise MissingDependency(f"an index of kind {kind} needs FAISS: pip install 'embedshare[server]'")
    # For this thread alone; the other half of the cores keeps embedding.
    faiss.omp_set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    dimension = rows.shape[1]
    measure = faiss.METRIC_INNER_PRODUCT if kinds.higher_is_better(metric) else faiss.METRIC_L2
    if kind == kinds.HNSW:
        graph = faiss.IndexHNSWFlat(dimension, kinds.LINKS, measure)
        graph.hnsw.efConstruction = 80
        graph.add(rows)
        return graph
    lists = int(4 * len(rows) ** 0.5)
    lists = min(lists, len(rows) // 39)
    codes = faiss.index_factory(dimension, f"IVF{lists},PQ{kinds.subvectors(dimension)}x8np", measure)
    finer = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_8bit, measure)
    index = faiss.IndexRefine(codes, finer)
    index.train(rows)
    index.add(rows)
    return index
