"""The studio: a web page and HTTP APIs in front of every model that diptych opens. `diptych serve` starts it."""
