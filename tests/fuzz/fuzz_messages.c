/* layer: worker. What arrives on a call, as the worker takes it: unpacked through an arena with a
 * ceiling, then its counts and sizes checked and its rows and sampling copied. The first byte
 * chooses the message, and the width that rows should have. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz/fuzz.h"
#include "rpc/rows.h"
#include "worker/worker_int.h"

enum { ARENA_BYTES_MAX = 1 << 20, FLOATS_MAX = 4096 };

static void rows(const Nakshatra__V1__Rows *in, int n_rows, int width)
{
    /* Exactly as large as was asked for, so that AddressSanitizer sees a float too many. */
    float *out = malloc((size_t)n_rows * (size_t)width * sizeof *out);
    struct nk_error err;

    if (!out)
        abort();
    if (nk__wire_rows(out, in, n_rows, width, &err)) {
        if (err.code != NK_E_INVALID || !err.reason[0] || !err.msg[0])
            abort();
    } else {
        for (int i = 0; i < n_rows * width; i++)
            if (!isfinite(out[i]))
                abort();
    }
    free(out);
}

static void sampling(const Nakshatra__V1__Sampling *in)
{
    static struct nk_logit_bias bias[NK_LOGIT_BIAS_MAX];
    struct nk_sampling s;
    struct nk_error err;

    if (nk__wire_sampling(&s, bias, in, &err)) {
        if (err.code != NK_E_INVALID || strcmp(err.reason, "bad_sampling") != 0)
            abort();
    } else if (nk_sampling_check(&s, NULL)) {
        abort();
    }
}

static void request(ProtobufCAllocator *allocator, const uint8_t *data, size_t size, int width)
{
    Nakshatra__V1__InferenceRequest *m =
        nakshatra__v1__inference_request__unpack(allocator, size, data);

    if (!m)
        return;
    if (m->kind_case == NAKSHATRA__V1__INFERENCE_REQUEST__KIND_OPEN) {
        sampling(m->open->sampling);
        for (size_t i = 0; i < m->open->n_route; i++)
            if (!m->open->route[i] || !m->open->route[i]->address)
                abort();
    } else if (m->kind_case == NAKSHATRA__V1__INFERENCE_REQUEST__KIND_STEP && m->step->n_ids &&
               m->step->n_ids <= (size_t)(FLOATS_MAX / width)) {
        rows(m->step->rows, (int)m->step->n_ids, width);
    }
}

static void forward(ProtobufCAllocator *allocator, const uint8_t *data, size_t size, int width)
{
    Nakshatra__V1__ForwardRequest *m =
        nakshatra__v1__forward_request__unpack(allocator, size, data);

    if (m && m->n_ids && m->n_ids <= (size_t)(FLOATS_MAX / width))
        rows(m->rows, (int)m->n_ids, width);
}

/* A reply is passed on: packed again it is what it was. */
static void reply(ProtobufCAllocator *allocator, const uint8_t *data, size_t size)
{
    Nakshatra__V1__InferenceReply *m =
        nakshatra__v1__inference_reply__unpack(allocator, size, data);
    size_t packed_size;
    uint8_t *packed;

    if (!m)
        return;
    packed_size = nakshatra__v1__inference_reply__get_packed_size(m);
    packed = malloc(packed_size + 1);
    if (!packed || nakshatra__v1__inference_reply__pack(m, packed) != packed_size)
        abort();
    free(packed);
}

const struct fuzz_ceiling fuzz_ceiling = { .base = 100000, .per_byte = 1000 };

void fuzz_one(const uint8_t *data, size_t size)
{
    static nk_arena *arena;

    if (!arena && !(arena = nk_arena_new(ARENA_BYTES_MAX)))
        abort();
    if (!size)
        return;
    nk_arena_reset(arena);
    switch (data[0] % 3) {
    case 0:
        request(nk_arena_allocator(arena), data + 1, size - 1, 1 + data[0] / 3);
        break;
    case 1:
        forward(nk_arena_allocator(arena), data + 1, size - 1, 1 + data[0] / 3);
        break;
    default:
        reply(nk_arena_allocator(arena), data + 1, size - 1);
    }
}
