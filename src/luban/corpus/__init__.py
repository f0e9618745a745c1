"""Raw text of any format becomes clean, deduplicated, split documents with a data card (verb ``curate``)."""
