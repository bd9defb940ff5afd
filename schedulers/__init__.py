"""HOW: (workload, target) -> Space; (space, config) -> scheduled IRModule."""
