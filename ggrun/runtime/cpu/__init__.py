"""The CPU: a thread team walking compiled kernels over one arena. `device` is pure; everything else is imported when running."""
