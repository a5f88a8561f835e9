"""Managed engines: a model server that cowest starts as a child process on loopback, and that ends with it (docs/local-models.md).

guard.py      between us and the server: ends it when we end, however that happens
child.py      one server process: started, looked at, ended, its log
program.py    what is to be served, and what a kind of server has to know; vllm.py and llamacpp.py are the two
servers.py    the servers of a run: which are up, restarts, adapters
managed.py    a model that is answered by such a server, and the engine that a recipe names
"""
