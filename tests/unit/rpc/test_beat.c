/* Who is silent, by two clocks that stand still until a test moves one of them: the other side says
 * nothing while its own stands. And by processes that are stopped and killed. */
#include "rpc_test.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SILENCE_MS = 3000, LOOK_MS = SILENCE_MS / 4 };

static struct virtual_clock client_clock;
static struct nk_server_opts server_opts;

/* ---- in one process ---- */

/* The nets and the server; the client's channel is watched. */
static int setup(void **state)
{
    struct fixture *f;

    if (fixture_setup_empty(state))
        return -1;
    f = *state;
    virtual_clock_init(&client_clock);
    if (nk_net_start(&f->client_net, &client_clock.clock, NULL))
        return -1;
    server_opts = test_opts(f);
    server_opts.silence_ms = SILENCE_MS;
    fixture_start(f, &server_opts);
    nk_channel_watch(f->channel, SILENCE_MS);
    return 0;
}

static int teardown(void **state)
{
    int rc = fixture_teardown(state);

    virtual_clock_release(&client_clock);
    return rc;
}

struct look {
    struct fixture *f;
    size_t n_timers;
    struct nk__beat beat;
    char peer[64];
    uint64_t patience_ms; /* of the server with the client; 0: it has heard nothing of it */
};

static void look_at_client(void *arg)
{
    struct look *l = arg;

    l->n_timers = l->f->client_net->n_timers;
    l->beat = l->f->channel->beat;
}

static void look_at_server(void *arg)
{
    struct look *l = arg;

    l->n_timers = l->f->net->n_timers;
    if (!LIST_EMPTY(&l->f->server->beats))
        l->patience_ms = LIST_FIRST(&l->f->server->beats)->patience_ns / 1000000;
}

static struct look client(struct fixture *f)
{
    struct look l = { .f = f };

    run_on(f->client_net, look_at_client, &l);
    return l;
}

static struct look server(struct fixture *f)
{
    struct look l = { .f = f };

    run_on(f->net, look_at_server, &l);
    return l;
}

/* Until each side has heard of the other. */
static void wait_heard(struct fixture *f)
{
    while (server(f).patience_ms == 0)
        sched_yield();
    while (client(f).beat.n_heard == 0)
        sched_yield();
}

/* A call that waits for an answer, and both sides have heard of each other just now. */
static struct record *begin(struct fixture *f, const char *path)
{
    struct record *r = fixture_record(f);

    assert_int_equal(record_start(r, f->channel, path, 0), 0);
    assert_true(record_wait(f->seen, &f->seen->n_opens, 1));
    return r;
}

static bool ended(struct record *r)
{
    bool yes;

    pthread_mutex_lock(&r->mu);
    yes = r->n_ends > 0;
    pthread_mutex_unlock(&r->mu);
    return yes;
}

/* In steps that are no pause of the process. */
static void pass(struct virtual_clock *v, nk_net *net, uint64_t ms)
{
    while (ms) {
        uint64_t step = ms < 250 ? ms : 250;

        virtual_clock_advance_ms(v, step);
        settle(net);
        ms -= step;
    }
}

/* Both clocks, until both have heard all that was said. */
static void pass_both(struct fixture *f, uint64_t ms)
{
    for (; ms; ms -= LOOK_MS) {
        uint64_t now;
        struct look l;

        virtual_clock_advance_ms(&client_clock, LOOK_MS);
        now = nk_clock_now_ns(&client_clock.clock);
        virtual_clock_advance_ms(&f->clock, LOOK_MS);
        do {
            l = client(f);
        } while (l.beat.heard_ns < now && !ended(f->seen));
    }
}

static void note_peer(void *arg)
{
    struct look *l = arg;

    snprintf(l->peer, sizeof l->peer, "%s", nk_call_peer(l->f->seen->call));
}

static void test_beat__a_silent_server_is_given_up_exactly_then(void **state)
{
    struct fixture *f = *state;
    struct record *r = begin(f, "/t.T/Record"), *other = fixture_record(f);
    struct look before = { .f = f }, after = { .f = f };

    assert_int_equal(record_start(other, f->channel, "/t.T/Echo", 0), 0);
    wait_heard(f);
    run_on(f->net, note_peer, &before);
    pass(&client_clock, f->client_net, SILENCE_MS - 1);
    assert_false(ended(r));
    pass(&client_clock, f->client_net, 1);
    assert_ended(r, NK_E_UNAVAILABLE, "peer_gone");
    assert_ended(other, NK_E_UNAVAILABLE, "peer_gone");
    assert_int_equal(r->ending, NK_ENDING_LOST);
    assert_non_null(strstr(r->status.msg, f->address));
    assert_non_null(strstr(r->status.msg, "silent for 3000 ms"));
    /* Nobody has said that it was cancelled. */
    assert_ended(f->seen, NK_E_CANCELLED, "cancelled");
    assert_int_equal(f->seen->ending, NK_ENDING_LOST);
    /* The next call finds it again, by another connection: the old one may be dead. */
    f->seen = fixture_record(f);
    run_on(f->net, NULL, NULL);
    begin(f, "/t.T/Record");
    run_on(f->net, note_peer, &after);
    assert_string_not_equal(before.peer, after.peer);
}

static void test_beat__any_message_is_a_sign_of_life(void **state)
{
    struct fixture *f = *state;
    struct record *r = begin(f, "/t.T/Record"), *other = fixture_record(f);

    assert_int_equal(record_start(other, f->channel, "/t.T/Echo", 0), 0);
    wait_heard(f);
    pass(&client_clock, f->client_net, SILENCE_MS - 1);
    echo(other);
    pass(&client_clock, f->client_net, SILENCE_MS - 1);
    assert_false(ended(r));
    pass(&client_clock, f->client_net, 1);
    assert_ended(r, NK_E_UNAVAILABLE, "peer_gone");
}

static void test_beat__a_silent_client_is_given_up_exactly_then(void **state)
{
    struct fixture *f = *state;
    struct record *r = begin(f, "/t.T/Record");

    wait_heard(f);
    pass(&f->clock, f->net, SILENCE_MS - 1);
    assert_false(ended(f->seen));
    pass(&f->clock, f->net, 1);
    assert_ended(f->seen, NK_E_UNAVAILABLE, "peer_gone");
    assert_int_equal(f->seen->ending, NK_ENDING_LOST);
    assert_non_null(strstr(f->seen->status.msg, "silent for 3000 ms"));
    assert_ended(r, NK_E_CANCELLED, "cancelled");
    assert_int_equal(r->ending, NK_ENDING_LOST);
}

/* On a slow line what the client says next comes behind its message. */
static void test_beat__a_client_that_sends_much_is_given_time_for_it(void **state)
{
    enum { BYTES = 1 << 20, MORE_MS = BYTES / 32 };
    struct fixture *f = *state;
    struct record *r = begin(f, "/t.T/Record");
    char *data = calloc(1, BYTES);

    wait_heard(f);
    assert_int_equal(nk_call_send(r->call, data, BYTES, NULL), 0);
    assert_true(record_wait(f->seen, &f->seen->n_messages, 1));
    do /* when it has arrived, and both know, no more than before */
        pass_both(f, LOOK_MS);
    while (server(f).patience_ms != SILENCE_MS);
    assert_int_equal(nk_call_send(r->call, data, BYTES, NULL), 0);
    free(data);
    assert_true(record_wait(f->seen, &f->seen->n_messages, 2));
    while (server(f).patience_ms != SILENCE_MS + MORE_MS) /* said on another stream */
        sched_yield();
    pass(&f->clock, f->net, SILENCE_MS + MORE_MS - 1);
    assert_false(ended(f->seen));
    pass(&f->clock, f->net, 1);
    assert_ended(f->seen, NK_E_UNAVAILABLE, "peer_gone");
    assert_ended(r, NK_E_CANCELLED, "cancelled");
}

static void test_beat__who_computes_for_long_is_not_given_up(void **state)
{
    struct fixture *f = *state;
    struct record *r = begin(f, "/t.T/Record");

    wait_heard(f);
    pass_both(f, 100 * SILENCE_MS);
    assert_false(ended(r));
    assert_false(ended(f->seen));
    nk_call_finish(f->seen->call, NULL);
    assert_ended(r, 0, "");
    assert_int_equal(r->ending, NK_ENDING_OK);
    assert_ended(f->seen, 0, "");
    assert_int_equal(f->seen->ending, NK_ENDING_OK);
    assert_int_equal(client(f).n_timers, 0); /* without calls nobody beats */
    while (server(f).n_timers)
        sched_yield();
}

/* The look that came too late was due LOOK_MS after the last sign of life: from there on it goes
 * on. */
static void test_beat__a_pause_of_this_process_is_nobodys_silence(void **state)
{
    struct fixture *f = *state;
    struct record *r = begin(f, "/t.T/Record");

    wait_heard(f);
    virtual_clock_advance_ms(&client_clock, 100000);
    settle(f->client_net);
    assert_false(ended(r));
    pass(&client_clock, f->client_net, SILENCE_MS - LOOK_MS - 1);
    assert_false(ended(r));
    pass(&client_clock, f->client_net, 1);
    assert_ended(r, NK_E_UNAVAILABLE, "peer_gone");

    assert_ended(f->seen, NK_E_CANCELLED, "cancelled");
    f->seen = fixture_record(f);
    run_on(f->net, NULL, NULL);
    while (server(f).patience_ms) /* of the old connection */
        sched_yield();
    r = begin(f, "/t.T/Record");
    wait_heard(f);
    virtual_clock_advance_ms(&f->clock, 100000);
    settle(f->net);
    assert_false(ended(f->seen));
    pass(&f->clock, f->net, SILENCE_MS - LOOK_MS - 1);
    assert_false(ended(f->seen));
    pass(&f->clock, f->net, 1);
    assert_ended(f->seen, NK_E_UNAVAILABLE, "peer_gone");
}

static void refuse_beat(nk_call *c, void *user)
{
    struct nk_error e;

    (void)user;
    nk_fail(&e, NK_E_UNIMPLEMENTED, "unknown_method", "this server has no method");
    nk_call_finish(c, &e);
}

static bool is_mute(struct fixture *f)
{
    struct look l = client(f);

    return l.beat.mute && !l.beat.call;
}

static void test_beat__a_server_of_before_is_not_given_up(void **state)
{
    struct fixture *f = *state;
    struct nk_method methods[8];
    struct nk_server_opts opts = test_opts(f);
    struct record *r;

    memcpy(methods, test_methods, sizeof test_methods);
    methods[opts.n_methods] = (struct nk_method){ NK_LINK_BEAT, refuse_beat, 0 };
    opts.methods = methods;
    opts.n_methods++;
    nk_channel_close(f->channel);
    nk_server_stop(f->server, 0);
    fixture_start(f, &opts);
    nk_channel_watch(f->channel, SILENCE_MS);
    r = begin(f, "/t.T/Record");
    while (!is_mute(f))
        sched_yield();
    pass(&client_clock, f->client_net, 10 * SILENCE_MS);
    assert_false(ended(r));
    nk_call_finish(f->seen->call, NULL);
    assert_ended(r, 0, "");
    nk_server_stop(f->server, 0); /* before the methods are gone */
    f->server = NULL;
}

/* ---- what is not taken ---- */

static void test_beat__a_server_that_takes_nothing_is_given_up(void **state)
{
    enum { N = 100, SIZE = 100000 }; /* more than any window */
    struct fixture *f = *state;
    struct record *r = fixture_record(f);
    char *data = calloc(1, SIZE);

    assert_int_equal(record_start(r, f->channel, "/t.T/Paused", 0), 0);
    for (int i = 0; i < N; i++)
        assert_int_equal(nk_call_send(r->call, data, SIZE, NULL), 0);
    free(data);
    assert_true(record_wait(f->seen, &f->seen->n_opens, 1));
    /* It says that it is there all the time. */
    while (!ended(r))
        pass_both(f, LOOK_MS);
    assert_ended(r, NK_E_UNAVAILABLE, "peer_gone");
    assert_int_equal(r->ending, NK_ENDING_LOST);
    assert_non_null(strstr(r->status.msg, f->address));
    assert_non_null(strstr(r->status.msg, "has not taken a message of 100000 bytes"));
}

static void pause_call(void *call)
{
    nk_call_pause(call);
}

static void test_beat__a_client_that_takes_nothing_is_given_up(void **state)
{
    enum { N = 100, SIZE = 100000 };
    struct fixture *f = *state;
    struct record *r = begin(f, "/t.T/Record");
    char *data = calloc(1, SIZE);

    wait_heard(f);
    run_on(f->client_net, pause_call, r->call);
    for (int i = 0; i < N; i++)
        assert_int_equal(nk_call_send(f->seen->call, data, SIZE, NULL), 0);
    free(data);
    while (!ended(f->seen))
        pass_both(f, LOOK_MS);
    assert_ended(f->seen, NK_E_UNAVAILABLE, "peer_gone");
    assert_int_equal(f->seen->ending, NK_ENDING_LOST);
    assert_non_null(strstr(f->seen->status.msg, "has not taken a message of 100000 bytes"));
}

/* ---- cancelled, and lost ---- */

static void test_beat__who_cancels_with_a_word_is_understood(void **state)
{
    struct fixture *f = *state;
    struct record *r = begin(f, "/t.T/Record"), *late = fixture_record(f);
    Nakshatra__V1__Stage word = NAKSHATRA__V1__STAGE__INIT, *read;
    struct nk_error e;

    word.address = (char *)"goodbye";
    nk_call_send(r->call, "a", 1, NULL);
    assert_true(record_wait(f->seen, &f->seen->n_messages, 1));
    for (int i = 0; i < 100; i++)
        assert_int_equal(nk_call_send(f->seen->call, "on its way", 10, NULL), 0);
    nk_call_cancel_with(r->call, &word.base);
    nk_call_cancel_with(r->call, &word.base); /* once is enough */
    assert_int_equal(nk_call_send(r->call, "x", 1, &e), NK_E_UNAVAILABLE);
    assert_string_equal(e.reason, "call_ended");
    assert_true(record_wait(f->seen, &f->seen->n_half_closed, 1));
    assert_int_equal(f->seen->n_messages, 2);
    read = nakshatra__v1__stage__unpack(NULL, f->seen->last.size, (uint8_t *)f->seen->last.data);
    assert_non_null(read);
    assert_string_equal(read->address, "goodbye");
    nakshatra__v1__stage__free_unpacked(read, NULL);
    nk_fail(&e, NK_E_CANCELLED, "cancelled", "as was asked");
    nk_call_finish(f->seen->call, &e);
    assert_ended(r, NK_E_CANCELLED, "cancelled");
    assert_int_equal(r->ending, NK_ENDING_HERE);
    assert_ended(f->seen, NK_E_CANCELLED, "cancelled");
    assert_int_equal(f->seen->ending, NK_ENDING_STATUS);

    /* After the half-close there is no word any more. */
    f->seen = fixture_record(f);
    run_on(f->net, NULL, NULL);
    assert_int_equal(record_start(late, f->channel, "/t.T/Record", 0), 0);
    nk_call_send_done(late->call);
    assert_true(record_wait(f->seen, &f->seen->n_half_closed, 1));
    nk_call_cancel_with(late->call, &word.base);
    assert_ended(late, NK_E_CANCELLED, "cancelled");
    assert_int_equal(late->ending, NK_ENDING_HERE);
    assert_ended(f->seen, NK_E_CANCELLED, "cancelled");
    assert_int_equal(f->seen->n_messages, 0);
}

/* A second, and not for ever. */
static void test_beat__the_word_is_not_waited_for_for_long(void **state)
{
    struct fixture *f = *state;
    Nakshatra__V1__Stage word = NAKSHATRA__V1__STAGE__INIT;
    struct record *r = begin(f, "/t.T/Paused");

    wait_heard(f);
    nk_call_cancel_with(r->call, &word.base);
    settle(f->client_net);
    pass(&client_clock, f->client_net, 999);
    assert_false(ended(r));
    pass(&client_clock, f->client_net, 1);
    assert_ended(r, NK_E_CANCELLED, "cancelled");
    assert_int_equal(r->ending, NK_ENDING_HERE);
    assert_ended(f->seen, NK_E_CANCELLED, "cancelled");
    assert_int_equal(f->seen->ending, NK_ENDING_LOST);
}

static void test_beat__how_a_call_has_ended(void **state)
{
    struct fixture *f = *state;
    struct record *refused = fixture_record(f), *cancelled = begin(f, "/t.T/Record"), *told, *cut,
                  *late, *unreachable = fixture_record(f);
    struct nk_error e;

    assert_int_equal(record_start(refused, f->channel, "/t.T/Refuse", 0), 0);
    assert_ended(refused, NK_E_EXHAUSTED, "kv_full");
    assert_int_equal(refused->ending, NK_ENDING_STATUS);

    nk_call_cancel(cancelled->call); /* without a word */
    assert_ended(cancelled, NK_E_CANCELLED, "cancelled");
    assert_int_equal(cancelled->ending, NK_ENDING_HERE);
    assert_ended(f->seen, NK_E_CANCELLED, "cancelled");
    assert_int_equal(f->seen->ending, NK_ENDING_LOST);

    f->seen = fixture_record(f);
    run_on(f->net, NULL, NULL);
    told = begin(f, "/t.T/Record");
    nk_fail(&e, NK_E_UNAVAILABLE, "peer_gone", "its own neighbour");
    nk_call_finish(f->seen->call, &e);
    assert_ended(told, NK_E_UNAVAILABLE, "peer_gone");
    assert_int_equal(told->ending, NK_ENDING_STATUS);
    assert_ended(f->seen, NK_E_UNAVAILABLE, "peer_gone");
    assert_int_equal(f->seen->ending, NK_ENDING_STATUS);

    f->seen = fixture_record(f);
    run_on(f->net, NULL, NULL);
    cut = begin(f, "/t.T/Record");
    nk_call_cancel(f->seen->call);
    assert_ended(cut, NK_E_CANCELLED, "cancelled");
    assert_int_equal(cut->ending, NK_ENDING_LOST);
    assert_ended(f->seen, NK_E_CANCELLED, "cancelled");
    assert_int_equal(f->seen->ending, NK_ENDING_HERE);

    f->seen = fixture_record(f);
    run_on(f->net, NULL, NULL);
    late = fixture_record(f);
    assert_int_equal(record_start(late, f->channel, "/t.T/Record", 100), 0);
    assert_true(record_wait(f->seen, &f->seen->n_opens, 1));
    virtual_clock_advance_ms(&client_clock, 100);
    assert_ended(late, NK_E_DEADLINE, "deadline");
    assert_int_equal(late->ending, NK_ENDING_HERE);

    nk_server_stop(f->server, 0);
    f->server = NULL;
    assert_int_equal(record_start(unreachable, f->channel, "/t.T/Record", 0), 0);
    assert_ended(unreachable, NK_E_UNAVAILABLE, "unreachable");
    assert_int_equal(unreachable->ending, NK_ENDING_LOST);
}

/* ---- between processes ---- */

struct child {
    pid_t pid;
    int in, out; /* it lives until `in` is closed; the line that it says */
};
static struct child child;

static void child_start(const char *role, const char *address)
{
    char *argv[] = { (char *)"test_rpc_beat", (char *)role, (char *)address, NULL };
    posix_spawn_file_actions_t actions;
    int in[2], out[2];

    assert_int_equal(pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC), 0);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    assert_int_equal(posix_spawn(&child.pid, "/proc/self/exe", &actions, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
    child.in = in[1];
    child.out = out[0];
}

static void child_stop(void)
{
    int status;

    assert_int_equal(kill(child.pid, SIGSTOP), 0);
    assert_int_equal(waitpid(child.pid, &status, WUNTRACED), child.pid);
    assert_true(WIFSTOPPED(status));
}

static void child_kill(void)
{
    if (!child.pid)
        return;
    kill(child.pid, SIGKILL);
    waitpid(child.pid, NULL, 0);
    close(child.in);
    close(child.out);
    child.pid = 0;
}

/* By the system's clock: gRPC's own pings are at work, too. */
static int setup_real(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);

    if (!f)
        return -1;
    virtual_clock_init(&f->clock); /* of nobody */
    if (nk_net_start(&f->net, nk_clock_system(), NULL))
        return -1;
    f->client_net = f->net;
    f->seen = fixture_record(f);
    *state = f;
    return 0;
}

static int teardown_real(void **state)
{
    child_kill();
    return fixture_teardown(state);
}

static int run_child(const char *role, const char *address)
{
    struct fixture *f;
    void *state;
    char c;

    if (setup_real(&state))
        return 1;
    f = state;
    if (!strcmp(role, "server")) {
        struct nk_server_opts opts = test_opts(f);

        if (nk_server_start(&f->server, f->net, &opts, NULL))
            return 1;
        printf("%d\n", nk_server_port(f->server));
        fflush(stdout);
    } else {
        struct record *r = fixture_record(f);

        if (nk_channel_open(&f->channel, f->net, address, NULL, NULL))
            return 1;
        nk_channel_watch(f->channel, SILENCE_MS);
        if (record_start(r, f->channel, "/t.T/Record", 0) || nk_call_send(r->call, "a", 1, NULL))
            return 1;
    }
    while (read(0, &c, 1) > 0)
        ;
    _exit(0);
}

static struct record *call_child(struct fixture *f)
{
    struct record *r = fixture_record(f);
    char line[16] = "";
    size_t n = 0;

    child_start("server", NULL);
    while (n + 1 < sizeof line && read(child.out, line + n, 1) == 1 && line[n] != '\n')
        n++;
    snprintf(f->address, sizeof f->address, "127.0.0.1:%d", atoi(line));
    assert_int_equal(nk_channel_open(&f->channel, f->net, f->address, NULL, NULL), 0);
    nk_channel_watch(f->channel, SILENCE_MS);
    assert_int_equal(record_start(r, f->channel, "/t.T/Echo", 0), 0);
    echo(r);
    return r;
}

static void called_by_child(struct fixture *f)
{
    struct nk_server_opts opts = test_opts(f);

    opts.silence_ms = SILENCE_MS;
    fixture_start(f, &opts);
    child_start("client", f->address);
    assert_true(record_wait(f->seen, &f->seen->n_messages, 1));
    while (server(f).patience_ms == 0) /* until then it is a client like any other */
        sched_yield();
}

static void test_beat__a_server_that_is_stopped_is_noticed_and_found_again(void **state)
{
    struct fixture *f = *state;
    struct record *r = call_child(f), *next = fixture_record(f);

    child_stop();
    assert_ended(r, NK_E_UNAVAILABLE, "peer_gone");
    assert_int_equal(r->ending, NK_ENDING_LOST);
    assert_non_null(strstr(r->status.msg, "silent for"));
    kill(child.pid, SIGCONT);
    assert_int_equal(record_start(next, f->channel, "/t.T/Echo", 0), 0);
    echo(next);
}

static void test_beat__a_client_that_is_stopped_is_noticed(void **state)
{
    struct fixture *f = *state;

    called_by_child(f);
    child_stop();
    assert_ended(f->seen, NK_E_UNAVAILABLE, "peer_gone");
    assert_int_equal(f->seen->ending, NK_ENDING_LOST);
    assert_non_null(strstr(f->seen->status.msg, "silent for"));
}

static void test_beat__a_server_that_is_killed_is_lost(void **state)
{
    struct fixture *f = *state;
    struct record *r = call_child(f);

    child_kill();
    assert_ended(r, NK_E_UNAVAILABLE, "peer_gone");
    assert_int_equal(r->ending, NK_ENDING_LOST);
    assert_non_null(strstr(r->status.msg, "the connection was lost"));
}

static void test_beat__a_client_that_is_killed_is_lost(void **state)
{
    struct fixture *f = *state;

    called_by_child(f);
    child_kill();
    assert_ended(f->seen, NK_E_CANCELLED, "cancelled");
    assert_int_equal(f->seen->ending, NK_ENDING_LOST);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define R(name) cmocka_unit_test_setup_teardown(name, setup_real, teardown_real)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        T(test_beat__a_silent_server_is_given_up_exactly_then),
        T(test_beat__any_message_is_a_sign_of_life),
        T(test_beat__a_silent_client_is_given_up_exactly_then),
        T(test_beat__a_client_that_sends_much_is_given_time_for_it),
        T(test_beat__who_computes_for_long_is_not_given_up),
        T(test_beat__a_pause_of_this_process_is_nobodys_silence),
        T(test_beat__a_server_of_before_is_not_given_up),
        T(test_beat__a_server_that_takes_nothing_is_given_up),
        T(test_beat__a_client_that_takes_nothing_is_given_up),
        T(test_beat__who_cancels_with_a_word_is_understood),
        T(test_beat__the_word_is_not_waited_for_for_long),
        T(test_beat__how_a_call_has_ended),
        R(test_beat__a_server_that_is_stopped_is_noticed_and_found_again),
        R(test_beat__a_client_that_is_stopped_is_noticed),
        R(test_beat__a_server_that_is_killed_is_lost),
        R(test_beat__a_client_that_is_killed_is_lost),
    };

    if (argc > 1)
        return run_child(argv[1], argc > 2 ? argv[2] : NULL);
    return cmocka_run_group_tests_name("beat", tests, NULL, NULL);
}
