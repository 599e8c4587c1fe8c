"""Many models: each is a unit of work, run in a process that may die, here or on a cluster; what is done is kept."""
