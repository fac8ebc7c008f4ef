"""LLM serving as a family of problems: the contests of the schedulers' papers, policies, judge and evidence."""
