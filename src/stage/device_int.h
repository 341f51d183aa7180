/* Devices and what libllama says, for the stage's own files. */
#ifndef NK_STAGE_DEVICE_INT_H
#define NK_STAGE_DEVICE_INT_H

#include <stdbool.h>
#include <stdint.h>

#include <ggml-backend.h>

#include "base/error.h"

/* By name (case does not matter); NULL: the first GPU, else the CPU. NOT_FOUND `no_device` lists
 * what there is. */
int nk__device_find(ggml_backend_dev_t *out, const char *name, struct nk_error *err);

/* The first line that libllama logged as an error on this thread since the reset, without its
 * function's name; "" if none. Its functions say no more than NULL or a number; this is the
 * sentence for it. Valid until the next call of libllama. */
const char *nk__llama_error(void);
void nk__llama_error_reset(void);
/* While hushed, what libllama says on this thread is kept as its error and not logged. */
void nk__llama_hush(bool on);

/* What libllama said of its compute buffers on this thread since the reset: bytes on the device of
 * this name (nk_device.name), and on all others. */
void nk__llama_compute_reset(void);
void nk__llama_compute_bytes(const char *device, uint64_t *on_device, uint64_t *elsewhere);

#endif
