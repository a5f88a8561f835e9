"""Results to one self-contained HTML file: plain data in (``data``), a page out (``html.render``).

Nothing is imported here, so that the records in :mod:`cowest.report.data` can be built without loading matplotlib.
"""
