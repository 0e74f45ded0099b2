"""Libraries that accept a SentenceTransformer accept the client, and load no model of their own."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import sentence_transformers

from embeddingClient import EmbeddingClient
from tests.processes import ModelServer

TEXT = (
    "Supervised learning is the machine learning task of learning a function that maps an input to an output "
    "based on example input-output pairs."
)
SUBJECTS = {
    "whales": ["a blue whale sings in the ocean", "whales eat krill in the sea"],
    "bread": ["bake bread with flour and yeast", "a sourdough loaf of bread in the oven"],
    "chess": ["castle the king early in chess", "a chess opening with the queen"],
}
DOCS = [f"{one}, {other}" for texts in SUBJECTS.values() for one, other in itertools.product(texts, texts)]


@pytest.fixture(scope="module")
def server(default_server: ModelServer) -> ModelServer:
    """The default model's server: its keywords and topics are known."""
    return default_server


@pytest.fixture
def only_model(model: EmbeddingClient, monkeypatch: pytest.MonkeyPatch) -> EmbeddingClient:
    """The client, in a process that cannot load a model itself."""

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a library loads a model of its own")

    monkeypatch.setattr(sentence_transformers.SentenceTransformer, "__init__", load)
    return model


def test_keybert_finds_the_same_keywords(only_model: EmbeddingClient, default_reference: Any) -> None:
    keybert = pytest.importorskip("keybert")
    with_it = keybert.KeyBERT(model=only_model)
    assert with_it.model.embedding_model is only_model
    ours = with_it.extract_keywords(TEXT, keyphrase_ngram_range=(1, 2))
    theirs = keybert.KeyBERT(model=default_reference).extract_keywords(TEXT, keyphrase_ngram_range=(1, 2))
    assert (
        [word for word, _ in ours][:2]
        == [word for word, _ in theirs][:2]
        == ["supervised learning", "supervised"]
    )
    assert dict(ours) == pytest.approx(dict(theirs), abs=0.01)


def test_bertopic_finds_the_topics_and_is_saved_with_a_client(
    only_model: EmbeddingClient, server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """scikit-learn replaces umap-learn and hdbscan, as BERTopic's documentation describes."""
    bertopic = pytest.importorskip("bertopic")
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    model = bertopic.BERTopic(
        embedding_model=only_model, umap_model=PCA(3), hdbscan_model=KMeans(3, n_init=3, random_state=0)
    )
    topics, _ = model.fit_transform(DOCS)
    assert model.embedding_model.embedding_model is only_model
    assert [len(set(topics[at : at + 4])) for at in (0, 4, 8)] == [1, 1, 1]
    assert len(set(topics)) == 3
    monkeypatch.setenv("EMBEDDING_AUTHKEY_FILE", server.given["EMBEDDING_AUTHKEY_FILE"])
    model.save(str(tmp_path / "topics"), serialization="pickle")
    loaded = bertopic.BERTopic.load(str(tmp_path / "topics"))
    with loaded.embedding_model.embedding_model as twin:
        assert type(twin) is EmbeddingClient
        assert twin is not only_model
        assert loaded.find_topics("dough", top_n=1)[0] == [topics[4]]


@pytest.mark.parametrize("library", ["keybert", "bertopic"])
def test_their_selectors_choose_it_for_its_type(only_model: EmbeddingClient, library: str) -> None:
    selector = pytest.importorskip(f"{library}.backend._utils")
    assert selector.select_backend(only_model).embedding_model is only_model
