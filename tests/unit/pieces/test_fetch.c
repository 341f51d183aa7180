#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "unit/pieces/pieces_test.h"
#include "unit/virtual_clock.h"

static nk_net *net;

static nk_fetch *start(nk_catalogue *c, struct nk_range range, struct nk_fetch_opts opts)
{
    nk_fetch *f;

    opts.net = net;
    ok(nk_fetch_start(&f, c, range, &opts, err));
    return f;
}

static void add(nk_fetch *f, const char *name, const struct machine *m)
{
    ok(nk_fetch_source_add(f, name, m->address, err));
}

static const struct nk_fetch_source *source_named(struct nk_fetch_progress *p, const char *name)
{
    for (int i = 0; i < p->n_sources; i++)
        if (!strcmp(p->sources[i].name, name))
            return &p->sources[i];
    fail_msg("no source %s", name);
    return NULL;
}

/* ---- the slice ---- */

/* Every range that can be cut (of large models: a few), and the vocabulary, each into a cache of
 * its own. */
static void fetch_ranges(char *model, const char *cache, bool few)
{
    nk_catalogue *c = catalogue_of(model);
    const nk_model *m = nk_catalogue_model(c);
    int n = nk_model_info(m)->n_layer, n_ranges = 0;
    struct machine a;
    nk_fetch *f;

    machine_start(&a, net, c, model, HONEST, 0);
    for (int b = 0; b < n; b++)
        for (int e = b + 1; e <= n; e++) {
            struct nk_range range = { b, e };
            char name[64];

            if (nk_ranges_check(m, &range, 1, false, NULL) || (few && e - b != 2 && e - b != n))
                continue;
            snprintf(name, sizeof name, "%s-%d-%d", cache, b, e);
            use_cache(name);
            f = start(c, range, (struct nk_fetch_opts){ 0 });
            add(f, "a", &a);
            assert_slice(f, model, range);
            remove_cache(name);
            n_ranges++;
        }
    assert_true(n_ranges >= (few ? 4 : n));
    use_cache(cache);
    f = start(c, (struct nk_range){ 0, 0 }, (struct nk_fetch_opts){ 0 }); /* needs no source */
    assert_slice(f, model, (struct nk_range){ 0, 0 });
    machine_stop(&a);
    nk_catalogue_unref(c);
    free(model);
    use_cache("cache");
}

static void test_fetch__every_range_is_what_the_slicer_writes(void **state)
{
    (void)state;
    fetch_ranges(given_model("NK_MODELS", "models", "kjv-tiny.gguf"), "kjv", false);
}

static void test_fetch__so_of_other_models(void **state)
{
    (void)state;
    fetch_ranges(given_model("NK_SOURCE", ".", "stories260K-q8_0.gguf"), "stories", false);
    fetch_ranges(make_model("tied", true, 11), "tied", true);
    fetch_ranges(make_model("untied", false, 12), "untied", true);
    fetch_ranges(make_shards("sharded", 13), "sharded", true);
}

static void test_fetch__what_is_there_is_not_fetched(void **state)
{
    char *model = make_model("there", false, 21), *path;
    nk_catalogue *c = catalogue_of(model);
    struct nk_fetch_progress p;
    struct machine a;
    nk_fetch *f;

    (void)state;
    use_cache("there");
    machine_start(&a, net, c, model, HONEST, 0);
    f = start(c, (struct nk_range){ 0, 2 }, (struct nk_fetch_opts){ 0 });
    add(f, "a", &a);
    assert_slice(f, model, (struct nk_range){ 0, 2 });
    atomic_store(&a.n_asked, 0);
    f = start(c, (struct nk_range){ 0, 2 }, (struct nk_fetch_opts){ 0 });
    add(f, "a", &a);
    ok(nk_fetch_wait(f, &path, err));
    nk_fetch_progress(f, &p);
    assert_int_equal(p.state, NK_FETCH_DONE);
    assert_int_equal(p.bytes_done, p.bytes_total);
    nk_fetch_free(f);
    free(path);
    assert_int_equal(atomic_load(&a.n_asked), 0);
    machine_stop(&a);
    nk_catalogue_unref(c);
    free(model);
}

static void test_fetch__moving_one_layer_fetches_one_layer(void **state)
{
    char *model = make_model("moved", false, 22);
    nk_catalogue *c = catalogue_of(model);
    const struct nk_piece *layer = nk_catalogue_piece(c, 2);
    struct nk_fetch_progress p;
    struct machine a;
    char *path;
    nk_fetch *f;

    (void)state;
    use_cache("moved");
    machine_start(&a, net, c, model, HONEST, 0);
    f = start(c, (struct nk_range){ 0, 2 }, (struct nk_fetch_opts){ 0 });
    add(f, "a", &a);
    assert_slice(f, model, (struct nk_range){ 0, 2 });
    atomic_store(&a.n_asked, 0);
    f = start(c, (struct nk_range){ 0, 3 }, (struct nk_fetch_opts){ 0 });
    add(f, "a", &a);
    ok(nk_fetch_wait(f, &path, err));
    nk_fetch_progress(f, &p);
    /* And the part of the head that its stub is in, of which the old slice has 32 rows only. */
    assert_int_equal(source_named(&p, "a")->bytes, layer->size_bytes + NK_PART_BYTES);
    assert_int_equal(atomic_load(&a.n_asked), layer->n_parts + 1);
    assert_int_equal(p.bytes_local + source_named(&p, "a")->bytes, p.bytes_total);
    free(path);
    assert_slice(f, model, (struct nk_range){ 0, 3 });
    machine_stop(&a);
    nk_catalogue_unref(c);
    free(model);
}

static void test_fetch__a_file_of_this_machine_is_enough(void **state)
{
    char *model = make_shards("own", 23);
    nk_catalogue *c = catalogue_of(model);
    const char *folders[] = { "/nowhere", test_dir };
    struct nk_fetch_progress p;
    char *path;
    nk_fetch *f;

    (void)state;
    use_cache("own");
    /* Another model of the same shape comes first in the folder; it is no use. */
    free(make_shards("ovn", 99));
    f = start(c, (struct nk_range){ 1, 4 },
              (struct nk_fetch_opts){ .folders = folders, .n_folders = 2 });
    ok(nk_fetch_wait(f, &path, err));
    nk_fetch_progress(f, &p);
    assert_int_equal(p.bytes_local, p.bytes_total);
    free(path);
    assert_slice(f, model, (struct nk_range){ 1, 4 });
    nk_catalogue_unref(c);
    free(model);
}

static void test_fetch__the_catalogue_comes_from_another_machine(void **state)
{
    char *model = given_model("NK_SOURCE", ".", "stories260K-f32.gguf");
    nk_catalogue *c = catalogue_of(model), *got;
    struct machine a;

    (void)state;
    machine_start(&a, net, c, model, HONEST, 0);
    use_cache("came");
    ok(nk_catalogue_fetch(&got, nk_catalogue_id(c), net, a.address, NULL, 600000, err));
    assert_string_equal(nk_catalogue_id(got), nk_catalogue_id(c));
    nk_catalogue_unref(got);
    ok(nk_catalogue_find(&got, nk_catalogue_id(c), err)); /* kept */
    nk_catalogue_unref(got);
    refused(
        nk_catalogue_fetch(&got, nk_catalogue_model_sha256(c), net, a.address, NULL, 600000, err),
        NK_E_NOT_FOUND, "no_catalogue");
    machine_stop(&a);
    nk_catalogue_unref(c);
    free(model);
}

/* ---- several sources ---- */

static void test_fetch__two_machines_that_have_half_each_are_enough(void **state)
{
    char *model = make_model("halves", false, 31);
    nk_catalogue *c = catalogue_of(model);
    struct nk_fetch_progress p;
    struct machine whole, a, b;
    char *path;
    nk_fetch *f;

    (void)state;
    machine_start(&whole, net, c, model, HONEST, 0);
    use_cache("half-a");
    f = start(c, (struct nk_range){ 0, 2 }, (struct nk_fetch_opts){ 0 });
    add(f, "whole", &whole);
    assert_slice(f, model, (struct nk_range){ 0, 2 });
    machine_start(&a, net, c, NULL, HONEST, 0);
    use_cache("half-b");
    f = start(c, (struct nk_range){ 2, 4 }, (struct nk_fetch_opts){ 0 });
    add(f, "whole", &whole);
    assert_slice(f, model, (struct nk_range){ 2, 4 });
    machine_start(&b, net, c, NULL, HONEST, 0);
    machine_stop(&whole);
    use_cache("half-c");
    f = start(c, (struct nk_range){ 0, 4 }, (struct nk_fetch_opts){ 0 });
    add(f, "a", &a);
    add(f, "b", &b);
    ok(nk_fetch_wait(f, &path, err));
    nk_fetch_progress(f, &p);
    /* The embedding is with a alone, the head with b. */
    assert_true(source_named(&p, "a")->bytes >= nk_catalogue_piece(c, 0)->size_bytes * 2);
    assert_true(source_named(&p, "b")->bytes >= nk_catalogue_piece(c, 2)->size_bytes * 2);
    free(path);
    assert_slice(f, model, (struct nk_range){ 0, 4 });
    machine_stop(&a);
    machine_stop(&b);
    nk_catalogue_unref(c);
    free(model);
}

/* b fetches from the whole model's machine, which has only so many parts for it; c fetches from b
 * alone, and gets on as b does. */
static void test_fetch__a_machine_that_is_still_fetching_is_a_source(void **state)
{
    char *model = make_model("relay", false, 32);
    nk_catalogue *c = catalogue_of(model);
    struct machine whole, b;
    nk_fetch *fb, *fc;
    struct nk_fetch_progress p = { 0 };

    (void)state;
    machine_start(&whole, net, c, model, SAYS_NOTHING, 3);
    use_cache("relay-b");
    fb = start(c, (struct nk_range){ 0, 4 }, (struct nk_fetch_opts){ .source_parts_max = 1 });
    machine_start(&b, net, c, NULL, HONEST, 0);
    ok(nk_pieces_service_add_fetch(b.s, fb, err));
    use_cache("relay-c");
    fc = start(c, (struct nk_range){ 0, 4 }, (struct nk_fetch_opts){ 0 });
    add(fb, "whole", &whole);
    add(fc, "b", &b);
    while (source_named((nk_fetch_progress(fc, &p), &p), "b")->bytes == 0)
        nk_sleep_ms(5); /* until it has a part from one who does not have all */
    nk_fetch_progress(fb, &p);
    assert_true(p.bytes_done < p.bytes_total);
    atomic_store(&whole.after, 1000000);
    nk_fetch_source_remove(fb, "whole"); /* what hangs is given up */
    add(fb, "whole", &whole);
    use_cache("relay-b");
    assert_slice(fb, model, (struct nk_range){ 0, 4 });
    use_cache("relay-c");
    assert_slice(fc, model, (struct nk_range){ 0, 4 });
    assert_int_equal(atomic_load(&whole.n_open), 0);
    machine_stop(&b);
    machine_stop(&whole);
    nk_catalogue_unref(c);
    free(model);
}

static void test_fetch__who_sends_wrong_bytes_is_dropped_and_named(void **state)
{
    char *model = make_model("wrong", false, 33), *copy = make_model("wrong2", false, 33), *path;
    nk_catalogue *c = catalogue_of(model);
    struct nk_fetch_progress p;
    struct machine liar, a;
    nk_fetch *f;
    int fd;

    (void)state;
    machine_start(&liar, net, c, copy, HONEST, 0);
    /* The disk of that machine goes bad after it has looked at its file. */
    fd = open(copy, O_WRONLY);
    for (int i = 0; i < 40; i++)
        assert_int_equal(pwrite(fd, "bad", 3, 1 << 19 | i << 20), 3);
    close(fd);
    use_cache("wrong");
    f = start(c, (struct nk_range){ 0, 4 }, (struct nk_fetch_opts){ 0 });
    add(f, "liar", &liar);
    do
        nk_fetch_progress(f, &p);
    while (!p.dropped[0] && p.state < NK_FETCH_DONE);
    assert_string_equal(p.dropped, "liar");
    assert_non_null(strstr(p.last_error, "wrong bytes"));
    assert_int_equal(source_named(&p, "liar")->state, NK_SOURCE_DROPPED);
    machine_start(&a, net, c, model, HONEST, 0);
    add(f, "a", &a);
    add(f, "liar", &a); /* a dropped one stays so, wherever it is said to be */
    ok(nk_fetch_wait(f, &path, err));
    nk_fetch_progress(f, &p);
    assert_int_equal(source_named(&p, "liar")->state, NK_SOURCE_DROPPED);
    free(path);
    assert_slice(f, model, (struct nk_range){ 0, 4 });
    machine_stop(&a);
    machine_stop(&liar);
    nk_catalogue_unref(c);
    free(model);
    free(copy);
}

static void drops(const char *name, enum misdeed misdeed)
{
    char *model = make_model(name, true, 34);
    nk_catalogue *c = catalogue_of(model);
    struct nk_fetch_progress p;
    struct machine liar, a;
    nk_fetch *f;

    machine_start(&liar, net, c, model, misdeed, 0);
    machine_start(&a, net, c, model, HONEST, 0);
    use_cache(name);
    f = start(c, (struct nk_range){ 1, 3 }, (struct nk_fetch_opts){ 0 });
    add(f, "liar", &liar);
    do
        nk_fetch_progress(f, &p);
    while (!p.dropped[0] && p.state < NK_FETCH_DONE);
    add(f, "a", &a);
    assert_slice(f, model, (struct nk_range){ 1, 3 });
    machine_stop(&a);
    machine_stop(&liar);
    nk_catalogue_unref(c);
    free(model);
}

static void test_fetch__who_sends_more_than_a_part_is_dropped(void **state)
{
    (void)state;
    drops("more", SENDS_MORE);
}

static void test_fetch__who_sends_what_is_no_message_is_dropped(void **state)
{
    (void)state;
    drops("short", CUTS_SHORT);
}

static void test_fetch__a_machine_that_dies_within_a_part_leaves_it_to_others(void **state)
{
    char *model = make_model("dies", false, 35);
    nk_catalogue *c = catalogue_of(model);
    struct machine dies, a;
    struct nk_fetch_progress p;
    nk_fetch *f;

    (void)state;
    machine_start(&dies, net, c, model, TRICKLES, 2);
    machine_start(&a, net, c, model, HONEST, 0);
    use_cache("dies");
    f = start(c, (struct nk_range){ 0, 3 }, (struct nk_fetch_opts){ 0 });
    add(f, "dies", &dies);
    while (!atomic_load(&dies.n_open))
        nk_sleep_ms(1);
    machine_stop(&dies);
    add(f, "a", &a);
    do
        nk_fetch_progress(f, &p);
    while (source_named(&p, "dies")->state != NK_SOURCE_PAUSED);
    assert_slice(f, model, (struct nk_range){ 0, 3 });
    machine_stop(&a);
    nk_catalogue_unref(c);
    free(model);
}

static void test_fetch__who_breaks_off_is_tried_again(void **state)
{
    char *model = make_model("breaks", true, 36);
    nk_catalogue *c = catalogue_of(model);
    struct machine a;
    nk_fetch *f;

    (void)state;
    machine_start(&a, net, c, model, BREAKS_OFF, 0);
    use_cache("breaks");
    f = start(c, (struct nk_range){ 0, 1 }, (struct nk_fetch_opts){ 0 });
    add(f, "a", &a);
    while (atomic_load(&a.n_asked) < 2)
        nk_sleep_ms(1);
    atomic_store(&a.after, 1000000);
    assert_slice(f, model, (struct nk_range){ 0, 1 }); /* after a pause of a second or two */
    machine_stop(&a);
    nk_catalogue_unref(c);
    free(model);
}

/* ---- deadlines: the time stands still until the test moves it ---- */

static void late_source(enum misdeed misdeed, const char *name)
{
    char *model = make_model(name, true, 41);
    nk_catalogue *c = catalogue_of(model);
    struct nk_fetch_opts opts = { .part_ms = 30000, .source_parts_max = 1 };
    struct nk_fetch_progress p;
    struct virtual_clock clock;
    struct machine slow, a;
    nk_net *still, *before = net;
    nk_fetch *f;

    virtual_clock_init(&clock);
    ok(nk_net_start(&still, &clock.clock, err));
    machine_start(&slow, net, c, model, misdeed, 0);
    machine_start(&a, net, c, model, HONEST, 0);
    use_cache(name);
    opts.clock = &clock.clock;
    net = still;
    f = start(c, (struct nk_range){ 0, 2 }, opts);
    add(f, "slow", &slow);
    while (!atomic_load(&slow.n_open))
        nk_sleep_ms(1);
    virtual_clock_advance_ms(&clock, 29999);
    nk_fetch_progress(f, &p);
    assert_int_equal(source_named(&p, "slow")->state, NK_SOURCE_READY);
    virtual_clock_advance_ms(&clock, 1);
    do
        nk_fetch_progress(f, &p);
    while (source_named(&p, "slow")->state != NK_SOURCE_PAUSED);
    assert_non_null(strstr(p.last_error, "30000 ms"));
    add(f, "a", &a);
    assert_slice(f, model, (struct nk_range){ 0, 2 });
    nk_net_stop(still);
    net = before;
    machine_stop(&a);
    machine_stop(&slow);
    virtual_clock_release(&clock);
    nk_catalogue_unref(c);
    free(model);
}

static void test_fetch__who_stops_is_left_at_the_deadline(void **state)
{
    (void)state;
    late_source(SAYS_NOTHING, "stops");
}

static void test_fetch__who_trickles_is_left_at_the_deadline(void **state)
{
    (void)state;
    late_source(TRICKLES, "trickles");
}

static void test_fetch__an_idle_source_takes_what_another_is_slow_with(void **state)
{
    char *model = make_model("idle", true, 42);
    nk_catalogue *c = catalogue_of(model);
    struct nk_fetch_progress p;
    struct virtual_clock clock;
    struct machine slow, a;
    nk_net *still, *before = net;
    nk_fetch *f;

    (void)state;
    virtual_clock_init(&clock);
    ok(nk_net_start(&still, &clock.clock, err));
    machine_start(&slow, net, c, model, SAYS_NOTHING, 0);
    machine_start(&a, net, c, model, HONEST, 0);
    use_cache("idle");
    net = still;
    f = start(c, (struct nk_range){ 0, 2 },
              (struct nk_fetch_opts){ .clock = &clock.clock, .source_parts_max = 2 });
    add(f, "slow", &slow);
    while (atomic_load(&slow.n_open) < 2)
        nk_sleep_ms(1);
    add(f, "a", &a);
    /* All but the two that the slow one is at. */
    do
        nk_fetch_progress(f, &p);
    while (source_named(&p, "a")->parts_in_flight || !source_named(&p, "a")->bytes ||
           p.bytes_done + 2 * NK_PART_BYTES < p.bytes_total);
    assert_true(p.bytes_done < p.bytes_total);
    virtual_clock_advance_ms(&clock, 2000); /* far from the deadline */
    assert_slice(f, model, (struct nk_range){ 0, 2 });
    nk_net_stop(still);
    net = before;
    machine_stop(&a);
    machine_stop(&slow);
    virtual_clock_release(&clock);
    nk_catalogue_unref(c);
    free(model);
}

static void test_fetch__without_a_source_it_gives_up_when_it_was_told_to(void **state)
{
    char *model = make_model("nobody", true, 43), *path;
    nk_catalogue *c = catalogue_of(model);
    struct virtual_clock clock;
    struct nk_fetch_progress p;
    nk_fetch *f;

    (void)state;
    virtual_clock_init(&clock);
    use_cache("nobody");
    f = start(c, (struct nk_range){ 0, 2 },
              (struct nk_fetch_opts){ .clock = &clock.clock, .give_up_ms = 60000 });
    virtual_clock_wait_for_waiter(&clock, 60000);
    virtual_clock_advance_ms(&clock, 59999);
    nk_fetch_progress(f, &p);
    assert_int_equal(p.state, NK_FETCH_RUNNING);
    virtual_clock_advance_ms(&clock, 1);
    refused(nk_fetch_wait(f, &path, err), NK_E_UNAVAILABLE, "no_source");
    nk_fetch_free(f);
    virtual_clock_release(&clock);
    nk_catalogue_unref(c);
    free(model);
}

/* ---- interrupted ---- */

static void test_fetch__cancelled_it_goes_on_where_it_was(void **state)
{
    char *model = make_model("cancel", false, 51), *path;
    nk_catalogue *c = catalogue_of(model);
    struct nk_fetch_progress p;
    struct machine a;
    nk_pieces_service *here;
    uint64_t done;
    nk_fetch *f, *g;

    (void)state;
    machine_start(&a, net, c, model, SAYS_NOTHING, 5);
    use_cache("cancel");
    f = start(c, (struct nk_range){ 1, 4 }, (struct nk_fetch_opts){ .source_parts_max = 1 });
    add(f, "a", &a);
    /* This machine serves what it has of it meanwhile, and afterwards. */
    ok(nk_pieces_service_new(&here, net, err));
    ok(nk_pieces_service_add(here, c, err));
    ok(nk_pieces_service_add_fetch(here, f, err));
    while (!atomic_load(&a.n_open))
        nk_sleep_ms(1);
    do
        nk_fetch_progress(f, &p);
    while (p.bytes_done == 0);
    refused(nk_fetch_start(&g, c, (struct nk_range){ 1, 4 }, &(struct nk_fetch_opts){ 0 }, err),
            NK_E_ABORTED, "busy");
    nk_fetch_cancel(f);
    refused(nk_fetch_wait(f, &path, err), NK_E_CANCELLED, "cancelled");
    nk_fetch_progress(f, &p);
    done = p.bytes_done;
    nk_fetch_free(f);
    atomic_store(&a.after, 1000000);
    f = start(c, (struct nk_range){ 1, 4 }, (struct nk_fetch_opts){ 0 });
    add(f, "a", &a);
    ok(nk_fetch_wait(f, &path, err));
    free(path);
    nk_fetch_progress(f, &p);
    assert_true(p.bytes_kept >= done); /* one may have been on its way to the disk */
    assert_true(p.bytes_kept > 0);
    assert_int_equal(source_named(&p, "a")->bytes, p.bytes_total - p.bytes_kept);
    assert_slice(f, model, (struct nk_range){ 1, 4 });
    machine_stop(&a);
    nk_pieces_service_free(here);
    nk_catalogue_unref(c);
    free(model);
}

/* A child process that fetches from this one, and never comes to an end; killed with SIGKILL when
 * it has asked for the part after those that it gets. It is this program, started anew: a fork of
 * one that has threads could do nothing. */
static void fetch_and_be_killed(const char *program, const char *model, const struct machine *a)
{
    pid_t pid = fork();
    int status;

    if (!pid) {
        execl(program, program, "fetch", model, a->address, test_dir, (char *)NULL);
        _exit(127);
    }
    while (!atomic_load(&a->n_open))
        assert_int_equal(waitpid(pid, &status, WNOHANG), 0);
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
}

static const char *program;

static int child_fetch(char **argv)
{
    struct nk_fetch_opts opts = { .source_parts_max = 1 };
    nk_catalogue *c;
    nk_fetch *f;
    char *path;

    snprintf(test_dir, sizeof test_dir, "%s", argv[4]);
    use_cache("killed");
    ok(nk_net_start(&net, nk_clock_system(), err));
    c = catalogue_of(argv[2]);
    opts.net = net;
    ok(nk_fetch_start(&f, c, (struct nk_range){ 0, 3 }, &opts, err));
    ok(nk_fetch_source_add(f, "a", argv[3], err));
    return nk_fetch_wait(f, &path, NULL);
}

static void test_fetch__killed_it_goes_on_and_loses_a_part_at_most(void **state)
{
    enum { GIVEN = 6 };
    char *model = make_model("killed", false, 52), *path, part[256];
    nk_catalogue *c = catalogue_of(model);
    struct nk_fetch_progress p;
    struct machine a;
    int fd, n_wanted = 0;
    nk_fetch *f;

    (void)state;
    machine_start(&a, net, c, model, SAYS_NOTHING, GIVEN);
    fetch_and_be_killed(program, model, &a);
    atomic_store(&a.after, 1000000);
    atomic_store(&a.n_asked, 0);
    use_cache("killed");
    f = start(c, (struct nk_range){ 0, 3 }, (struct nk_fetch_opts){ .source_parts_max = 1 });
    add(f, "a", &a);
    ok(nk_fetch_wait(f, &path, err));
    nk_fetch_progress(f, &p);
    /* Of everything but layer 3 and the head's second part, whose rows are past the stub; the one
     * that was on its way is all that was lost. */
    for (int i = 0; i < nk_catalogue_n_parts(c); i++) {
        const struct nk_piece *piece = nk_catalogue_piece(c, nk_catalogue_part(c, i)->piece);

        if (piece->layer != 3 &&
            (strcmp(piece->name, "output.weight") != 0 || i == piece->first_part))
            n_wanted++;
    }
    assert_int_equal(atomic_load(&a.n_asked), n_wanted - GIVEN);
    free(path);
    assert_slice(f, model, (struct nk_range){ 0, 3 });

    /* Once more; what the journal says is there, a crash of the machine has not left there. */
    snprintf(part, sizeof part, "rm -rf %s/killed", test_dir);
    assert_int_equal(system(part), 0);
    atomic_store(&a.n_asked, 0);
    atomic_store(&a.after, GIVEN);
    fetch_and_be_killed(program, model, &a);
    atomic_store(&a.after, 1000000);
    snprintf(part, sizeof part, "%s/killed/nakshatra/slices/%s-2/.killed.000-003.gguf.part",
             test_dir, nk_catalogue_model_sha256(c));
    fd = open(part, O_WRONLY);
    assert_true(fd >= 0);
    for (int i = 0; i < 64; i++)
        pwrite(fd, "\0\0\0", 3, (1 << 19) * i + 100000);
    close(fd);
    f = start(c, (struct nk_range){ 0, 3 }, (struct nk_fetch_opts){ 0 });
    add(f, "a", &a);
    assert_slice(f, model, (struct nk_range){ 0, 3 });
    machine_stop(&a);
    nk_catalogue_unref(c);
    free(model);
}

/* ---- room ---- */

static uint64_t few_bytes(const char *folder, void *user)
{
    (void)folder;
    return *(uint64_t *)user;
}

static void test_fetch__without_room_it_does_not_begin(void **state)
{
    char *model = make_model("room", false, 61);
    nk_catalogue *c = catalogue_of(model);
    uint64_t there = 5 << 20;
    struct nk_error e;
    nk_fetch *f;

    (void)state;
    use_cache("room");
    assert_int_equal(
        nk_fetch_start(&f, c, (struct nk_range){ 0, 2 },
                       &(struct nk_fetch_opts){ .free_bytes = few_bytes, .user = &there }, &e),
        NK_E_EXHAUSTED);
    assert_string_equal(e.reason, "no_space");
    assert_non_null(strstr(e.msg, "13 MiB are needed"));
    assert_non_null(strstr(e.msg, "5 MiB are free"));
    nk_catalogue_unref(c);
    free(model);
}

static void test_fetch__a_disk_that_fills_up_is_an_error_and_what_came_is_kept(void **state)
{
    char *model = make_model("full", false, 62), *path;
    nk_catalogue *c = catalogue_of(model);
    struct rlimit old, few = { .rlim_cur = 10 << 20 };
    struct nk_fetch_progress p;
    struct nk_error e;
    struct machine a;
    nk_fetch *f;

    (void)state;
    machine_start(&a, net, c, model, HONEST, 0);
    free(true_slice(model, (struct nk_range){ 0, 2 }));
    use_cache("full");
    f = start(c, (struct nk_range){ 0, 2 }, (struct nk_fetch_opts){ 0 });
    signal(SIGXFSZ, SIG_IGN); /* writing beyond the limit then fails with EFBIG */
    getrlimit(RLIMIT_FSIZE, &old);
    few.rlim_max = old.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &few), 0);
    add(f, "a", &a);
    assert_int_equal(nk_fetch_wait(f, &path, &e), NK_E_EXHAUSTED);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_string_equal(e.reason, "no_space");
    assert_non_null(strstr(e.msg, "MiB are free"));
    nk_fetch_progress(f, &p);
    assert_int_equal(p.state, NK_FETCH_FAILED);
    nk_fetch_free(f);
    f = start(c, (struct nk_range){ 0, 2 }, (struct nk_fetch_opts){ 0 });
    add(f, "a", &a);
    ok(nk_fetch_wait(f, &path, err));
    free(path);
    assert_slice(f, model, (struct nk_range){ 0, 2 });
    machine_stop(&a);
    nk_catalogue_unref(c);
    free(model);
}

/* ---- what the service refuses ---- */

static void test_service__another_models_file_is_refused(void **state)
{
    char *model = make_model("mine", true, 71), *other = make_model("other", true, 72);
    nk_catalogue *c = catalogue_of(model);
    nk_pieces_service *s;

    (void)state;
    ok(nk_pieces_service_new(&s, net, err));
    refused(nk_pieces_service_add_model(s, c, other, err), NK_E_PRECONDITION, "wrong_model");
    nk_pieces_service_free(s);
    nk_catalogue_unref(c);
    free(model);
    free(other);
}

static void test_service__is_busy_over_its_limit_and_the_fetch_comes_again(void **state)
{
    char *model = make_model("busy", false, 73);
    nk_catalogue *c = catalogue_of(model);
    struct nk_pieces_figures figures;
    struct machine a;
    nk_fetch *f;

    (void)state;
    machine_start(&a, net, c, model, HONEST, 0);
    use_cache("busy");
    f = start(c, (struct nk_range){ 0, 4 },
              (struct nk_fetch_opts){ .parts_max = 40, .source_parts_max = 40 });
    add(f, "a", &a);
    assert_slice(f, model, (struct nk_range){ 0, 4 });
    nk_pieces_service_figures(a.s, &figures);
    assert_int_equal(figures.streams, 0);
    assert_true(figures.parts_sent >= 14);
    machine_stop(&a);
    nk_catalogue_unref(c);
    free(model);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fetch__every_range_is_what_the_slicer_writes),
        cmocka_unit_test(test_fetch__so_of_other_models),
        cmocka_unit_test(test_fetch__what_is_there_is_not_fetched),
        cmocka_unit_test(test_fetch__moving_one_layer_fetches_one_layer),
        cmocka_unit_test(test_fetch__a_file_of_this_machine_is_enough),
        cmocka_unit_test(test_fetch__the_catalogue_comes_from_another_machine),
        cmocka_unit_test(test_fetch__two_machines_that_have_half_each_are_enough),
        cmocka_unit_test(test_fetch__a_machine_that_is_still_fetching_is_a_source),
        cmocka_unit_test(test_fetch__who_sends_wrong_bytes_is_dropped_and_named),
        cmocka_unit_test(test_fetch__who_sends_more_than_a_part_is_dropped),
        cmocka_unit_test(test_fetch__who_sends_what_is_no_message_is_dropped),
        cmocka_unit_test(test_fetch__a_machine_that_dies_within_a_part_leaves_it_to_others),
        cmocka_unit_test(test_fetch__who_breaks_off_is_tried_again),
        cmocka_unit_test(test_fetch__who_stops_is_left_at_the_deadline),
        cmocka_unit_test(test_fetch__who_trickles_is_left_at_the_deadline),
        cmocka_unit_test(test_fetch__an_idle_source_takes_what_another_is_slow_with),
        cmocka_unit_test(test_fetch__without_a_source_it_gives_up_when_it_was_told_to),
        cmocka_unit_test(test_fetch__cancelled_it_goes_on_where_it_was),
        cmocka_unit_test(test_fetch__killed_it_goes_on_and_loses_a_part_at_most),
        cmocka_unit_test(test_fetch__without_room_it_does_not_begin),
        cmocka_unit_test(test_fetch__a_disk_that_fills_up_is_an_error_and_what_came_is_kept),
        cmocka_unit_test(test_service__another_models_file_is_refused),
        cmocka_unit_test(test_service__is_busy_over_its_limit_and_the_fetch_comes_again),
    };
    int rc;

    if (argc == 5 && !strcmp(argv[1], "fetch"))
        return child_fetch(argv);
    program = argv[0];
    test_dir_make(NULL);
    use_cache("cache");
    if (nk_net_start(&net, nk_clock_system(), NULL))
        return 1;
    rc = cmocka_run_group_tests(tests, NULL, test_dir_remove);
    nk_net_stop(net);
    return rc;
}
