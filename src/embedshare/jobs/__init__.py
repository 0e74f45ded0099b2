"""Jobs: long lists of texts, kept on disk and embedded part by part in the background."""
