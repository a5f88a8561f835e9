"""Models behind one protocol (:class:`cowest.protocols.ChatModel`): OpenAI-compatible HTTP, local, scripted.

Nothing is imported here: ``local`` loads torch, and whoever needs only an endpoint must not pay for that.
"""
