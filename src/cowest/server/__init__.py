"""``cowest serve``: a run (or a recipe) as an OpenAI-compatible endpoint.

    app.py -> gateway.py -> drafter.py (weak), upstream.py or chat_backend.py (strong)

``opening.py`` makes the served models of a run; ``runner.py`` listens, and drains on SIGTERM.
"""
