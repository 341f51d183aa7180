/* What other systems borrow of ours: its chain. */
#ifndef NK_BENCH_OURS_H
#define NK_BENCH_OURS_H

#include "bench/system.h"
#include "chain/chain.h"

/* Borrowed until nk_system_ours.stop. */
nk_chain *nk_ours_chain(nk_system *ours);

/* How many tokens each of n_streams sessions generates when they are to decode n_predict steps
 * together: the first token belongs to the prompt, and the first sessions decode already while the
 * others' prompts are computed. Its caller has to have room for as many (n_ctx). */
int nk_ours_decode_tokens(int n_streams, int n_predict);

#endif
