/* Where the threads of ggml's CPU backend run.
 *
 * They come from OpenMP, as a team that belongs to the thread that computes, and meet at a barrier
 * after every operation. Stages that share a machine take turns at its cores: whenever a stage's
 * turn comes, the kernel wakes its team and has to find a core for each. It now and then puts two
 * of a team on one core while another is idle, and the whole team then waits for the slower one
 * until the load is balanced again. A team of as many threads as there are cores has only one good
 * place for each, so that is said once. A smaller team is left to the kernel: which cores are free
 * it knows better. */
#include "stage/stage.h"

#include <string.h>

#include "base/cpu.h"

#ifdef _OPENMP
#include <omp.h>

void nk_stage_place_threads(const nk_stage *s)
{
    const struct nk_stage_info *info = nk_stage_info(s);
    int n = nk_cpu_count();

    if (n < 2 || info->n_threads != n || strcmp(info->backend, "CPU") != 0)
        return;
#pragma omp parallel num_threads(n)
    nk_cpu_pin(omp_get_thread_num());
}
#else
void nk_stage_place_threads(const nk_stage *s)
{
    (void)s;
}
#endif
