"""The lab: synthetic domains and tiny, really trained models, so that the whole loop runs offline on a laptop."""
