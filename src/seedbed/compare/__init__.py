"""Compare strategies at equal cost: who did what (`board.py`), what it says (`statistics.py`, `verdict.py`), the page."""
