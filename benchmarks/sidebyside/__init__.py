"""Training steps timed side by side: networks, contenders, turns, statistics, tables, figures."""
