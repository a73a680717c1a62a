"""What there is to be seen of a model's answers, task by task: numbers, tables and figures."""
