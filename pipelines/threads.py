"""How many threads a process takes: said before it starts, since libraries ask when they are imported."""


def thread_environment(threads: int) -> dict[str, str]:
    """The variables that give torch, NumPy and SimpleITK so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    return dict.fromkeys(names, str(threads))
