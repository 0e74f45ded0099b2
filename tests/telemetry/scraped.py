"""Metrics as a scraper reads them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

#: A sample's name, and its labels sorted by name.
Key = tuple[str, tuple[tuple[str, str], ...]]


class Scrape:
    """The samples of one scrape, by name and labels."""

    def __init__(self, text: str) -> None:
        self.samples: dict[Key, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = sample.name, tuple(sorted(sample.labels.items()))
                assert key not in self.samples, f"{key} comes twice"
                self.samples[key] = sample.value

    def __call__(self, name: str, /, **labels: str) -> float:
        """Return the sum of the samples that have at least these labels."""
        wanted = labels.items()
        return sum(
            value
            for (found, own), value in self.samples.items()
            if found == name and wanted <= dict(own).items()
        )

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.samples}

    def label_values(self, name: str, label: str) -> set[str]:
        return {dict(own)[label] for found, own in self.samples if found == name}
