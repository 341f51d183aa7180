/* Templates that are made to do harm, rendered by real children: this program is its own. */
#include "text/template.h"

#include <pthread.h>
#include <signal.h>

#include "base/process.h"
#include "unit/text/text_test.h"

#define HELLO "[{\"role\":\"user\",\"content\":\"hello\"}]"

/* A sanitizer catches signals itself and has no limits of memory. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = true };
#else
enum { SANITIZED = false };
#endif

static char *self;

static nk_template *open_template(const char *text)
{
    struct nk_error err = { 0 };
    nk_template *t = NULL;

    if (nk_template_open(&t, self, text, "<s>", "</s>", &err))
        fail_msg("%s", err.msg);
    return t;
}

static int render(nk_template *t, const char *extra, struct nk_work *work, struct nk_buf *out,
                  struct nk_error *err)
{
    const struct nk_jinja_input in = {
        .messages = HELLO, .extra = extra, .add_generation_prompt = true, .now = 86400
    };

    nk_buf_reset(out);
    return nk_template_render(t, &in, work, out, err);
}

static void assert_renders(nk_template *t, const char *extra, const char *wanted)
{
    struct nk_buf out = NK_BUF_INIT(100000);
    struct nk_error err = { 0 };

    if (render(t, extra, NULL, &out, &err))
        fail_msg("%s", err.msg);
    assert_string_equal(nk_buf_str(&out), wanted);
    nk_buf_release(&out);
}

static void assert_fails(nk_template *t, const char *extra, const char *reason, const char *named)
{
    struct nk_buf out = NK_BUF_INIT(100000);
    struct nk_error err = { 0 };

    assert_int_equal(render(t, extra, NULL, &out, &err), NK_E_INVALID);
    assert_string_equal(err.reason, reason);
    if (!strstr(err.msg, named))
        fail_msg("\"%s\" does not name %s", err.msg, named);
    assert_int_equal(out.size, 0);
    nk_buf_release(&out);
}

static void test_template__a_child_renders_as_the_engine_does(void **state)
{
    static const char text[] =
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
        "{% if tools %}T{% endif %}{{ x }}{{ eos_token }}{{ strftime_now('%Y') }}";
    nk_template *child = open_template(text), *here = NULL;
    struct nk_jinja_caps a, b;

    (void)state;
    assert_int_equal(nk_template_open(&here, NULL, text, "<s>", "</s>", NULL), 0);
    assert_renders(child, "{\"x\":1}", "<s>user: hello1</s>1970");
    assert_renders(here, "{\"x\":1}", "<s>user: hello1</s>1970");
    assert_renders(child, NULL, "<s>user: hello</s>1970");
    a = nk_template_caps(child);
    b = nk_template_caps(here);
    assert_memory_equal(&a, &b, sizeof a);
    assert_true(a.system_role);
    nk_template_close(child);
    nk_template_close(here);
}

static void test_template__errors_of_the_engine_are_the_childs(void **state)
{
    nk_template *t = open_template("{{ messages[0].content }}{{ raise_exception('no') if n }}");
    struct nk_error err = { 0 };
    nk_template *bad = NULL;

    (void)state;
    assert_fails(t, "{\"n\":1}", "bad_template", "no");
    assert_fails(t, "{\"messages\":[]}", "reserved_name", "messages");
    assert_renders(t, "{\"n\":0}", "hello");
    nk_template_close(t);
    assert_int_equal(nk_template_open(&bad, self, "{% for m in messages %}", "", "", &err),
                     NK_E_INVALID);
    assert_string_equal(err.reason, "bad_template");
    assert_null(bad);
    assert_int_equal(nk_template_open(&bad, "/nothing/here", "x", "", "", &err), NK_E_NOT_FOUND);
}

static void test_template__what_ends_its_child_is_an_error_of_its_request(void **state)
{
    nk_template *t;

    (void)state;
#ifdef __x86_64__ /* others divide by zero without a fault */
    t = open_template("{{ messages[0].content }}{{ 6 // 1 if not n }}{{ 6 % n if n }}");
    assert_renders(t, NULL, "hello6");
    assert_fails(t, "{\"n\":0.5}", "bad_template", SANITIZED ? "" : "divides by zero");
    assert_renders(t, "{\"n\":4}", "hello2");
    assert_renders(t, NULL, "hello6");
    nk_template_close(t);
#endif
    if (SANITIZED)
        return;
    /* Computes without end, with names of its own only. */
    t = open_template(
        "{{ messages[0].content }}{% if n %}{% for a in range(n) %}{% for b in range(n) %}"
        "{% for c in range(n) %}{% endfor %}{% endfor %}{% endfor %}{% endif %}");
    assert_fails(t, "{\"n\":90000}", "bad_template", "");
    assert_renders(t, "{\"n\":2}", "hello");
    nk_template_close(t);
    t = open_template("{{ messages[0].content }}{{ ('x' * n) | length if n }}");
    assert_renders(t, "{\"n\":3}", "hello3");
    assert_fails(t, "{\"n\":1000000000000}", "bad_template", "");
    assert_renders(t, "{\"n\":3}", "hello3");
    nk_template_close(t);
}

static void test_template__nested_too_deeply_is_an_error_of_opening(void **state)
{
    struct nk_buf text = NK_BUF_INIT(1 << 20);
    struct nk_error err = { 0 };
    nk_template *t = NULL;

    (void)state;
    if (SANITIZED) /* its stack is deeper, and it takes its time */
        return;
    nk_buf_adds(&text, "{{ ", NULL);
    for (int i = 0; i < 100000; i++)
        nk_buf_adds(&text, "(", NULL);
    nk_buf_adds(&text, "1", NULL);
    for (int i = 0; i < 100000; i++)
        nk_buf_adds(&text, ")", NULL);
    nk_buf_adds(&text, " }}", NULL);
    assert_int_equal(nk_template_open(&t, self, nk_buf_str(&text), "", "", &err), NK_E_INVALID);
    assert_string_equal(err.reason, "bad_template");
    assert_null(t);
    nk_buf_release(&text);
}

static void test_template__range_counts_by_its_length(void **state)
{
    /* In this process: by steps, not by time. */
    nk_template *t = NULL;

    (void)state;
    assert_int_equal(
        nk_template_open(&t, NULL,
                         "{{ messages[0].content }}{% for i in range(n) %}{% set x = range(n) %}"
                         "{% endfor %}",
                         "", "", NULL),
        0);
    assert_renders(t, "{\"n\":100}", "hello");
    assert_fails(t, "{\"n\":2000}", "bad_template", "too many steps"); /* 2000 x 2000 numbers */
    nk_template_close(t);
}

static void test_template__a_child_that_is_killed_is_replaced(void **state)
{
    nk_template *t = open_template("{{ messages[0].content }}");

    (void)state;
    assert_renders(t, NULL, "hello");
    /* Its group is its own; there is only one child of this process. */
    for (;;) {
        char path[64], line[64] = "";
        int pid = 0;
        FILE *f;

        snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)getpid(), (int)getpid());
        f = fopen(path, "r");
        if (!f) /* not this kernel */
            break;
        if (fgets(line, sizeof line, f) && sscanf(line, "%d", &pid) == 1)
            kill(pid, SIGKILL);
        fclose(f);
        break;
    }
    /* Perhaps it is not dead yet: then this request has it. */
    {
        struct nk_buf out = NK_BUF_INIT(1000);

        if (render(t, NULL, NULL, &out, NULL))
            assert_renders(t, NULL, "hello");
        nk_buf_release(&out);
    }
    nk_template_close(t);
}

static atomic_bool cancelled;

static void *cancel(void *arg)
{
    (void)arg;
    atomic_store(&cancelled, true);
    return NULL;
}

static void test_template__ends_when_nobody_waits_for_it(void **state)
{
    nk_template *t = open_template("{{ messages[0].content }}{{ ('x' * n) | length if n }}");
    struct nk_work work = NK_WORK_INIT(&cancelled);
    struct nk_buf out = NK_BUF_INIT(1000);
    struct nk_error err = { 0 };
    pthread_t thread;
    int rc;

    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, cancel, NULL), 0);
    rc = render(t, "{\"n\":100000000}", &work, &out, &err);
    pthread_join(thread, NULL);
    if (rc) /* else it was faster */
        assert_int_equal(rc, NK_E_CANCELLED);
    assert_int_equal(render(t, NULL, &work, &out, &err), NK_E_CANCELLED);
    assert_renders(t, NULL, "hello");
    nk_buf_release(&out);
    nk_template_close(t);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_template__a_child_renders_as_the_engine_does),
        cmocka_unit_test(test_template__errors_of_the_engine_are_the_childs),
        cmocka_unit_test(test_template__what_ends_its_child_is_an_error_of_its_request),
        cmocka_unit_test(test_template__nested_too_deeply_is_an_error_of_opening),
        cmocka_unit_test(test_template__range_counts_by_its_length),
        cmocka_unit_test(test_template__a_child_that_is_killed_is_replaced),
        cmocka_unit_test(test_template__ends_when_nobody_waits_for_it),
    };
    int failed;

    if (argc == 3 && !strcmp(argv[1], NK_TEMPLATE_ARG))
        return nk_template_serve(atoi(argv[2]));
    if (nk_process_self(&self, NULL))
        return 1;
    failed = cmocka_run_group_tests(tests, test_setup, test_teardown);
    free(self);
    return failed;
}
