"""Views of a model's outputs, task by task: numbers, tables and figures."""
