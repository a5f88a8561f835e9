"""From a recipe to live objects: tasks, frames, models, systems."""
