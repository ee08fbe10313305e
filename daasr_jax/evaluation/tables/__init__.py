"""The paper's tables and figures: their cells, statistics and pages; no files."""
