/* What a figure was measured on, and whether the machine was quiet meanwhile.
 *
 * Three signs of noise:
 *
 *  - processor time that went to anybody but this process and its descendants ("foreign": other
 *    programs, and the hypervisor's steal);
 *  - a fixed piece of work between runs that takes longer than it did at best ("slowdown":
 *    throttling, a neighbour on the memory bus, steal that the kernel does not see);
 *  - the spread of the runs themselves, which bench/table.h judges.
 *
 * Linux only; elsewhere nothing is known and all are 0. */
#ifndef NK_BENCH_MACHINE_H
#define NK_BENCH_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"

/* "AMD EPYC (family 25, model 17, AVX-512), 2 cores, 23.5 GiB, Linux 6.18.44 x86_64" */
void nk_machine_describe(char *out, unsigned long size);

/* Restricts this process and all it starts to the given cores: "0-3,6". INVALID `bad_cpus`.
 * Elsewhere than on Linux UNIMPLEMENTED `no_affinity`. */
int nk_machine_pin(const char *cpus, struct nk_error *err);

/* Processor time since boot, in kernel ticks: everybody's, and that of this process and its living
 * descendants and of the children that were reaped. */
struct nk_machine_load {
    uint64_t busy, own;
    uint64_t at_ns;
};
struct nk_machine_load nk_machine_load_now(void);
/* Between two samples: the share of the usable cores that others took, 0 to 1. */
double nk_machine_foreign(const struct nk_machine_load *begin, const struct nk_machine_load *end);

/* Processor time of the living threads of a process in seconds, exact to the scheduler's
 * nanoseconds; 0 when it is gone. */
double nk_machine_process_cpu_s(int pid);
/* Memory that a process would give back, each shared page counted by its share (PSS), in bytes; 0
 * when it is gone or the kernel does not tell. */
uint64_t nk_machine_process_pss(int pid);

/* A fixed piece of arithmetic and a walk over 64 MiB, on one thread: seconds, about 0.04. */
double nk_machine_calibrate(void);

#endif
