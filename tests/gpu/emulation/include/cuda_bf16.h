// halves.h stands for it: cuda_on_cpu.h has included that
