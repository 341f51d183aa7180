/* An assignment (agent/hold.c): a slice of this machine's own file, and workers that are a script:
 * ready, dying, missing. */
#include "unit/pieces/pieces_test.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>

#include "agent/agent_int.h"

struct world {
    nk_agent a;
    char program[256], path[300];
    char *model;
    nk_catalogue *catalogue;
    struct nk__hold *h;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    char said[4096];
};

static void say(void *user, const char *sentence)
{
    struct world *w = user;
    size_t n;

    pthread_mutex_lock(&w->mutex);
    n = strlen(w->said);
    snprintf(w->said + n, sizeof w->said - n, "%s\n", sentence);
    pthread_cond_broadcast(&w->cond);
    pthread_mutex_unlock(&w->mutex);
}

static void progress(void *user, const struct nk_agent_progress *p)
{
    (void)user;
    assert_true(p->bytes_done <= p->bytes_total);
}

static void until_said(struct world *w, const char *part)
{
    pthread_mutex_lock(&w->mutex);
    while (!strstr(w->said, part))
        pthread_cond_wait(&w->cond, &w->mutex);
    pthread_mutex_unlock(&w->mutex);
}

/* The worker: a shell script, with its own path in $0; every start adds a line to $0.pids. */
static void write_program(struct world *w, const char *text)
{
    FILE *f = fopen(w->program, "w");

    assert_non_null(f);
    fprintf(f, "#!/bin/sh\necho $$ >>$0.pids\necho \"$@\" >$0.args\n%s\n", text);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(chmod(w->program, 0700), 0);
}

/* The process ids of all starts. */
static int pids(struct world *w, int out[8])
{
    FILE *f;
    int n = 0;

    snprintf(w->path, sizeof w->path, "%s.pids", w->program);
    f = fopen(w->path, "r");
    while (f && n < 8 && fscanf(f, "%d", &out[n]) == 1)
        n++;
    if (f)
        fclose(f);
    return n;
}

static int set_up(void **state)
{
    struct world *w = calloc(1, sizeof *w);

    if (test_dir_make(state))
        return -1;
    use_cache("cache");
    w->model = make_model("model", true, 1);
    w->catalogue = catalogue_of(w->model);
    snprintf(w->program, sizeof w->program, "%s/program", test_dir);
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->cond, NULL);
    pthread_mutex_init(&w->a.mutex, NULL);
    assert_int_equal(pipe2(w->a.life, O_CLOEXEC), 0);
    assert_int_equal(pipe2(w->a.wake, O_CLOEXEC | O_NONBLOCK), 0);
    strcpy(w->a.joined.name, "cellar");
    w->a.o = (struct nk_agent_opts){ .program = w->program,
                                     .models = { test_dir },
                                     .n_models = 1,
                                     .clock = nk_clock_system(),
                                     .say = say,
                                     .progress = progress,
                                     .user = w };
    ok(nk_net_start(&w->a.net, nk_clock_system(), err));
    ok(nk_pieces_service_new(&w->a.pieces, w->a.net, err));
    ok(nk_pieces_service_add(w->a.pieces, w->catalogue, err));
    *state = w;
    return 0;
}

static int tear_down(void **state)
{
    struct world *w = *state;

    if (w->h)
        nk__hold_free(w->h);
    nk_pieces_service_free(w->a.pieces);
    nk_net_stop(w->a.net);
    nk_catalogue_unref(w->catalogue);
    for (int i = 0; i < 2; i++) {
        close(w->a.life[i]);
        close(w->a.wake[i]);
    }
    pthread_mutex_destroy(&w->a.mutex);
    pthread_cond_destroy(&w->cond);
    pthread_mutex_destroy(&w->mutex);
    free(w->model);
    free(w);
    return test_dir_remove(state);
}

static void start(struct world *w)
{
    struct nk__assignment as = { .epoch = 7, .layer_begin = 0, .layer_end = 2 };
    struct nk__wanted how = { .n_ctx = 512 };

    strcpy(how.catalogue, nk_catalogue_id(w->catalogue));
    ok(nk__hold_start(&w->h, &w->a, &as, &how, w->catalogue, err));
}

static struct nk__hold seen(struct world *w)
{
    struct nk__hold h;

    pthread_mutex_lock(&w->a.mutex);
    h.state = w->h->state;
    h.port = w->h->port;
    h.failures = w->h->failures;
    strcpy(h.error, w->h->error);
    pthread_mutex_unlock(&w->a.mutex);
    return h;
}

/* ---- tests ---- */

static void test_hold__a_worker_is_started_with_its_slice_and_ended(void **state)
{
    struct world *w = *state;
    struct nk_buf args = NK_BUF_INIT(1 << 16);
    struct nk__hold h;
    int all[8];

    write_program(w, "echo 'ready [::]:4711 layers 0-2 of 4'; exec sleep 1000");
    start(w);
    until_said(w, "layers 0-2 are served");
    h = seen(w);
    assert_int_equal(h.state, NK_HOLDING_READY);
    assert_int_equal(h.port, 4711);
    snprintf(w->path, sizeof w->path, "%s.args", w->program);
    ok(nk_file_read(w->path, 1 << 16, &args, err));
    assert_non_null(strstr(nk_buf_str(&args), "worker --slice "));
    assert_non_null(strstr(nk_buf_str(&args), " --id cellar "));
    assert_non_null(strstr(nk_buf_str(&args), " --epoch 7 "));
    assert_non_null(strstr(nk_buf_str(&args), " --ctx 512"));
    nk_buf_release(&args);
    nk__hold_free(w->h);
    w->h = NULL;
    assert_int_equal(pids(w, all), 1);
    assert_int_equal(kill(all[0], 0), -1); /* reaped: no zombie is left either */
    assert_int_equal(errno, ESRCH);
}

static void test_hold__a_worker_that_dies_is_started_again_after_growing_pauses(void **state)
{
    struct world *w = *state;
    struct nk__hold h;
    int all[8];

    write_program(w, "[ $(wc -l <$0.pids) -gt 2 ] || exit 3\n"
                     "echo 'ready [::]:4711 layers 0-2 of 4'; exec sleep 1000");
    start(w);
    until_said(w, "ended with exit code 3; again in 1 s");
    until_said(w, "ended with exit code 3; again in 2 s");
    until_said(w, "are served");
    h = seen(w);
    assert_int_equal(h.state, NK_HOLDING_READY);
    assert_int_equal(h.failures, 2); /* it has not served for long yet */
    assert_int_equal(pids(w, all), 3);
    assert_int_equal(kill(all[2], SIGKILL), 0); /* as the kernel's memory killer does */
    until_said(w, "was killed by signal 9");
}

static void test_hold__a_program_that_is_not_there_is_named(void **state)
{
    struct world *w = *state;
    struct nk__hold h;

    start(w); /* there is none */
    until_said(w, "again in 1 s");
    h = seen(w);
    assert_int_equal(h.state, NK_HOLDING_FAILED);
    assert_non_null(strstr(h.error, w->program));
    nk__hold_free(w->h); /* in its pause */
    w->h = NULL;
}

static void test_hold__a_worker_that_hangs_while_it_starts_is_ended(void **state)
{
    struct world *w = *state;
    int all[8];

    write_program(w, "echo 'loading'; exec sleep 1000");
    start(w);
    while (pids(w, all) < 1) /* it says nothing: its start is all there is to see */
        usleep(1000);
    nk__hold_free(w->h);
    w->h = NULL;
    assert_int_equal(kill(all[0], 0), -1);
    assert_null(strstr(w->said, "served"));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_hold__a_worker_is_started_with_its_slice_and_ended),
        TEST(test_hold__a_worker_that_dies_is_started_again_after_growing_pauses),
        TEST(test_hold__a_program_that_is_not_there_is_named),
        TEST(test_hold__a_worker_that_hangs_while_it_starts_is_ended),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
