/* Messages unpacked when memory runs out (no_memory.h), and into an arena without room. */
#include "unit/no_memory.h"

#include "rpc/arena.h"
#include "rpc/proto.h"

static uint8_t bytes[1 << 16];
static size_t n_bytes;

/* An Open with a route, a prompt and sampling: many allocations of protobuf-c. */
static void pack(void)
{
    Nakshatra__V1__InferenceRequest req = NAKSHATRA__V1__INFERENCE_REQUEST__INIT;
    Nakshatra__V1__Open open = NAKSHATRA__V1__OPEN__INIT;
    Nakshatra__V1__Stage stages[40], *route[40];
    Nakshatra__V1__Limits limits = NAKSHATRA__V1__LIMITS__INIT;
    Nakshatra__V1__Sampling sampling = NAKSHATRA__V1__SAMPLING__INIT;
    static int32_t ids[4000];

    for (int i = 0; i < 40; i++) {
        stages[i] = (Nakshatra__V1__Stage)NAKSHATRA__V1__STAGE__INIT;
        stages[i].address = (char *)(uintptr_t) "127.0.0.1:5530";
        route[i] = &stages[i];
    }
    for (int i = 0; i < 4000; i++)
        ids[i] = i;
    open.route = route;
    open.n_route = 40;
    open.prompt_ids = ids;
    open.n_prompt_ids = 4000;
    open.limits = &limits;
    sampling.grammar = (char *)(uintptr_t) "root ::= \"a\"";
    open.sampling = &sampling;
    req.kind_case = NAKSHATRA__V1__INFERENCE_REQUEST__KIND_OPEN;
    req.open = &open;
    n_bytes = nakshatra__v1__inference_request__get_packed_size(&req);
    assert_true(n_bytes <= sizeof bytes);
    nakshatra__v1__inference_request__pack(&req, bytes);
}

static int unpack(nk_arena *a, struct nk_error *err)
{
    Nakshatra__V1__InferenceRequest *req =
        nakshatra__v1__inference_request__unpack(nk_arena_allocator(a), n_bytes, bytes);

    if (!req)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a message");
    assert_int_equal(req->open->n_route, 40);
    assert_string_equal(req->open->route[39]->address, "127.0.0.1:5530");
    assert_int_equal(req->open->n_prompt_ids, 4000);
    assert_int_equal(req->open->prompt_ids[3999], 3999);
    return 0;
}

static int new_arena(void *arg, struct nk_error *err)
{
    nk_arena *a = nk_arena_new(1 << 20);
    int rc;

    (void)arg;
    if (!a)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    rc = unpack(a, err);
    if (!rc) { /* the second time there is one block for all of it, or none */
        nk_arena_reset(a);
        rc = unpack(a, err);
    }
    nk_arena_free(a);
    return rc;
}

static void test_arena__a_refused_block_fails_the_message(void **state)
{
    (void)state;
    pack();
    each_allocation_refused(new_arena, NULL, 3);
}

static int again(void *arena, struct nk_error *err)
{
    int rc = unpack(arena, err);

    nk_arena_reset(arena);
    return rc;
}

static void test_arena__after_a_failure_it_works_again(void **state)
{
    struct nk_error err = { 0 };
    nk_arena *a = nk_arena_new(1 << 20);

    (void)state;
    pack();
    for (long n = 0; n < 3; n++) {
        no_memory_left = n;
        again(a, &err);
        no_memory_left = -1;
        assert_int_equal(again(a, &err), 0);
    }
    nk_arena_free(a);
}

static void test_arena__a_message_at_every_ceiling_fails_or_is_whole(void **state)
{
    struct nk_error err = { 0 };
    bool fitted = false;

    (void)state;
    pack();
    for (size_t max = 0; max < 64 << 10; max += 496) {
        nk_arena *a = nk_arena_new(max);
        int rc = unpack(a, &err);

        assert_true(!rc || !fitted); /* what fits, fits into more */
        fitted = !rc;
        nk_arena_free(a);
    }
    assert_true(fitted);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arena__a_refused_block_fails_the_message),
        cmocka_unit_test(test_arena__after_a_failure_it_works_again),
        cmocka_unit_test(test_arena__a_message_at_every_ceiling_fails_or_is_whole),
    };

    return cmocka_run_group_tests_name("no_memory", tests, NULL, NULL);
}
