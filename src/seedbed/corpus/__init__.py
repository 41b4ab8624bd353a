"""Turn raw text files into clean documents: find and read files, normalise, deduplicate, split, write shards."""
