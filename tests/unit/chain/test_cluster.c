#include "chain/cluster.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"

#define SHA   "1f0e2d3c4b5a69788796a5b4c3d2e1f00112233445566778899aabbccddeeff0"
#define MODEL "model:\n  id: kjv-tiny\n  sha256: " SHA "\n"

static int parse(struct nk_cluster **c, const char *text, struct nk_error *err)
{
    memset(err, 0, sizeof *err);
    return nk_cluster_parse(c, (struct nk_bytes){ (const uint8_t *)text, strlen(text) },
                            "some/c.yaml", err);
}

/* The text is refused, and the message says `expected` ("LINE: words"). */
static void refuse(const char *text, const char *expected)
{
    struct nk_cluster *c = (void *)1;
    struct nk_error err;
    char begin[32];
    int line = atoi(expected);

    assert_int_equal(parse(&c, text, &err), NK_E_INVALID);
    assert_null(c);
    assert_string_equal(err.reason, "bad_cluster");
    snprintf(begin, sizeof begin, "some/c.yaml:%d: ", line);
    if (strncmp(err.msg, begin, strlen(begin)) || !strstr(err.msg, strchr(expected, ' ') + 1))
        fail_msg("expected '%s', the message is '%s'", expected, err.msg);
}

static void test_cluster__reads_the_form_of_its_header(void **state)
{
    struct nk_cluster *c;
    struct nk_error err;

    (void)state;
    assert_int_equal(parse(&c,
                           "# a comment\n" MODEL "  vocab: kjv-tiny.vocab.gguf # relative\n"
                           "dtype: f16\n"
                           "workers:\n"
                           "  - id: attic\n"
                           "    address: 127.0.0.1:5530\n"
                           "    layers: 0-4\n"
                           "  - {id: \"cellar\", address: '[::1]:5531', layers: 4-8}\n",
                           &err),
                     0);
    assert_string_equal(c->model_id, "kjv-tiny");
    assert_string_equal(c->model_sha256, SHA);
    assert_string_equal(c->vocab_path, "some/kjv-tiny.vocab.gguf");
    assert_string_equal(c->path, "some/c.yaml");
    assert_true(c->f16);
    assert_int_equal(c->n_workers, 2);
    assert_string_equal(c->workers[0].id, "attic");
    assert_string_equal(c->workers[0].address, "127.0.0.1:5530");
    assert_int_equal(c->workers[0].layer_end, 4);
    assert_int_equal(c->workers[0].line, 8);
    assert_string_equal(c->workers[1].address, "[::1]:5531");
    assert_int_equal(c->workers[1].layer_begin, 4);
    assert_int_equal(c->workers[1].layer_end, 8);
    free(c);
}

static void test_cluster__dtype_is_f32_where_not_given_and_vocab_empty(void **state)
{
    struct nk_cluster *c;
    struct nk_error err;

    (void)state;
    assert_int_equal(parse(&c, MODEL "workers:\n- {id: a, address: h:1, layers: 0-1}\n", &err), 0);
    assert_false(c->f16);
    assert_string_equal(c->vocab_path, "");
    free(c);
}

static void test_cluster__reads_the_files_of_tls_relative_to_itself(void **state)
{
    struct nk_cluster *c;
    struct nk_error err;

    (void)state;
    assert_int_equal(parse(&c,
                           MODEL "tls: {ca: ca.pem, certificate: ../me.pem, key: "
                                 "/etc/me.key}\nworkers: [{id: a, address: h:1, layers: 0-1}]\n",
                           &err),
                     0);
    assert_string_equal(c->tls_ca, "some/ca.pem");
    assert_string_equal(c->tls_certificate, "some/../me.pem");
    assert_string_equal(c->tls_key, "/etc/me.key");
    free(c);
}

static void test_cluster__reads_an_identity_relative_to_itself_and_the_epoch(void **state)
{
    struct nk_cluster *c;
    struct nk_error err;

    (void)state;
    assert_int_equal(parse(&c,
                           MODEL "identity: me\nepoch: 9223372036854775807\n"
                                 "workers: [{id: a, address: h:1, layers: 0-1}]\n",
                           &err),
                     0);
    assert_string_equal(c->identity, "some/me");
    assert_true(c->epoch == INT64_MAX);
    free(c);
    assert_int_equal(parse(&c, MODEL "workers: [{id: a, address: h:1, layers: 0-1}]\n", &err), 0);
    assert_string_equal(c->identity, "");
    assert_true(c->epoch == 0);
    free(c);
    refuse(MODEL "epoch: -1\n", "4: epoch: '-1' is no number");
    refuse(MODEL "epoch: 12345678901234567890\n", "4: epoch: '12345678901234567890' is no number");
    refuse(MODEL "identity: [a]\n", "4: identity: expected a value, found a list");
    refuse(MODEL "identity: a\ntls: {ca: a, certificate: b, key: c}\n"
                 "workers: [{id: a, address: h:1, layers: 0-1}]\n",
           "1: 'tls' and 'identity' are both given");
}

static void test_cluster__sorts_workers_by_their_layers(void **state)
{
    struct nk_cluster *c;
    struct nk_error err;

    (void)state;
    assert_int_equal(parse(&c,
                           "workers:\n"
                           "- {id: c, address: h:3, layers: 5-9}\n"
                           "- {id: a, address: h:1, layers: 0-2}\n"
                           "- {id: b, address: h:2, layers: 2-5}\n" MODEL,
                           &err),
                     0);
    assert_string_equal(c->workers[0].id, "a");
    assert_string_equal(c->workers[1].id, "b");
    assert_string_equal(c->workers[2].id, "c");
    free(c);
}

static void test_cluster__takes_a_hash_in_capitals(void **state)
{
    struct nk_cluster *c;
    struct nk_error err;
    char text[512], *p;

    (void)state;
    snprintf(text, sizeof text, MODEL "workers: [{id: a, address: h:1, layers: 0-1}]\n");
    p = strstr(text, "1f0e");
    p[1] = 'F';
    assert_int_equal(parse(&c, text, &err), 0);
    assert_string_equal(c->model_sha256, SHA);
    free(c);
}

static void test_cluster__refuses_what_is_not_the_form_with_its_line(void **state)
{
    (void)state;
    refuse("", "1: the file is empty");
    refuse("# nothing\n", "1: the file is empty");
    refuse("- a\n", "1: expected keys (model, tls, dtype, workers), found a list");
    refuse("hello\n", "1: expected keys (model, tls, dtype, workers), found a value");
    refuse(MODEL "workers:\n- {id: a, address: h:1, layers: 0-1}\nport: 3\n",
           "6: 'port' is no key of the file");
    refuse(MODEL "workers:\n- {id: a, address: h:1, layers: 0-1, ram: 3}\n",
           "5: 'ram' is no key of a worker");
    refuse(MODEL "  url: x\nworkers:\n- {id: a, address: h:1, layers: 0-1}\n",
           "4: 'url' is no key of model");
    refuse(MODEL MODEL "workers:\n- {id: a, address: h:1, layers: 0-1}\n",
           "4: 'model' is given twice");
    refuse(MODEL, "1: 'workers' is missing");
    refuse("workers:\n- {id: a, address: h:1, layers: 0-1}\n", "1: 'model' is missing");
    refuse("model: {id: x}\nworkers:\n- {id: a, address: h:1, layers: 0-1}\n",
           "1: model: 'sha256' is missing");
    refuse("model: {sha256: " SHA "}\nworkers:\n- {id: a, address: h:1, layers: 0-1}\n",
           "1: model: 'id' is missing");
    refuse("model: {id: x, sha256: abc}\n", "1: 'abc' is not 64 hexadecimal digits");
    refuse("model: {id: x, sha256: [1]}\n", "1: expected a value, found a list");
    refuse("model: {id: x, vocab: }\n", "1: model vocab: expected a value, found nothing");
    refuse(MODEL "tls: {ca: a, key: b}\n", "4: tls: 'certificate' is missing");
    refuse(MODEL "tls: {ca: a, secret: b}\n", "4: 'secret' is no key of tls");
    refuse(MODEL "tls: on\n", "4: expected tls: keys");
    refuse(MODEL "dtype: bf16\n", "4: dtype: 'bf16' is not known; f32 and f16 are");
    refuse(MODEL "workers: []\n", "4: the list is empty");
    refuse(MODEL "workers: a\n", "4: expected a list of workers");
    refuse(MODEL "workers:\n- a\n", "5: a worker's keys");
    refuse(MODEL "workers:\n- {id: a, address: h:1}\n", "5: this worker: 'layers' is missing");
    refuse(MODEL "workers:\n- {address: h:1, layers: 0-1}\n", "5: this worker: 'id' is missing");
    refuse(MODEL "workers:\n- {id: a b, address: h:1, layers: 0-1}\n", "5: worker id 'a b'");
    refuse(MODEL "workers:\n- {id: \"a\\0b\", address: h:1, layers: 0-1}\n",
           "5: control character (0x00)");
    refuse(MODEL "workers:\n- {id: a, address: h:1, layers: 0-1}\n---\nmodel: x\n",
           "6: a second document");
}

static void test_cluster__refuses_addresses_that_cannot_be_dialled(void **state)
{
    static const char *const bad[] = {
        "h",     "h:",         ":1",    "h:0",         "h:65536",
        "h:1x",  "h:-1",       "a:b:1", "[]:1",        "[::1]",
        "::1:1", "http://h:1", "h/x:1", "h h:1",       "[::1:1",
        "[x]:1", "h:+1",       "h:1 ",  "unix:/tmp/x", "h:99999999999999999999"
    };

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char text[512];

        snprintf(text, sizeof text, MODEL "workers:\n- {id: a, address: \"%s\", layers: 0-1}\n",
                 bad[i]);
        refuse(text, "5: HOST:PORT was expected");
    }
}

static void test_cluster__refuses_layers_of_another_form(void **state)
{
    static const char *const bad[] = { "0",
                                       "0-",
                                       "-1",
                                       "0-0",
                                       "3-2",
                                       "0-1-2",
                                       "0..3",
                                       "a-b",
                                       "0-x",
                                       "+0-3",
                                       "0- 3",
                                       "0-1025",
                                       "0-99999999999999999999" };

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char text[512];

        snprintf(text, sizeof text, MODEL "workers:\n- {id: a, address: h:1, layers: \"%s\"}\n",
                 bad[i]);
        refuse(text, "5: BEGIN-END was expected");
    }
}

static void test_cluster__refuses_gaps_overlaps_and_doubles_naming_both(void **state)
{
    (void)state;
    refuse(MODEL "workers:\n- {id: a, address: h:1, layers: 1-2}\n", "5: nobody has layers 0-1");
    refuse(MODEL
           "workers:\n- {id: a, address: h:1, layers: 0-2}\n- {id: b, address: h:2, layers: 3-4}\n",
           "6: nobody has layers 2-3: worker a ends at 2 and worker b begins at 3");
    refuse(MODEL
           "workers:\n- {id: a, address: h:1, layers: 0-3}\n- {id: b, address: h:2, layers: 2-4}\n",
           "6: worker b has layers 2-4, which overlap those of worker a, 0-3");
    refuse(MODEL
           "workers:\n- {id: a, address: h:1, layers: 0-3}\n- {id: b, address: h:2, layers: 0-3}\n",
           "6: worker b has layers 0-3, which overlap those of worker a, 0-3");
    refuse(MODEL
           "workers:\n- {id: a, address: h:1, layers: 2-3}\n- {id: a, address: h:2, layers: 0-2}\n",
           "6: the worker id 'a' is given twice (first in line 5)");
    refuse(MODEL
           "workers:\n- {id: a, address: h:1, layers: 0-3}\n- {id: b, address: h:1, layers: 3-4}\n",
           "6: worker b has the address of worker a (line 5), h:1");
    refuse(MODEL
           "workers: [{id: a, address: h:1, layers: 0-3}, {id: a, address: h:2, layers: 3-4}]\n",
           "4: the worker id 'a' is given twice");
}

static void test_cluster__expands_nothing_and_ends_at_the_first_bracket_too_many(void **state)
{
    char *deep = malloc(200001);

    (void)state;
    refuse("model: &m {id: x}\n", "1: an anchor (&m) is not taken here");
    refuse("model: *m\n", "1: an alias (*m) is not taken here");
    refuse("model: !!map {id: x}\n", "1: a tag");
    refuse("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", "1: 'a' is no key");
    refuse("<<: *x\n", "1: '<<' is no key");
    memset(deep, '[', 200000);
    deep[200000] = '\0';
    refuse(deep, "1: found a list");
    memset(deep, '{', 200000);
    refuse(deep, "1: ");
    free(deep);
}

static void test_cluster__refuses_bytes_that_are_not_yaml(void **state)
{
    (void)state;
    refuse("model: {\n", "2: not YAML");
    refuse("model:\n\tid: x\n", "2: not YAML");
    refuse("model: \"x\n", "2: not YAML");
    refuse("\xff\xfe\n", "1: not YAML");
    refuse(MODEL "workers:\n- {id: \xc3\x28, address: h:1, layers: 0-1}\n", "1: not YAML");
}

static void test_cluster__refuses_a_file_over_its_ceiling(void **state)
{
    size_t size = 300000;
    uint8_t *text = malloc(size);
    struct nk_cluster *c;
    struct nk_error err;

    (void)state;
    memset(text, '#', size);
    assert_int_equal(nk_cluster_parse(&c, (struct nk_bytes){ text, size }, "c", &err),
                     NK_E_INVALID);
    assert_string_equal(err.reason, "bad_cluster");
    free(text);
}

static void test_cluster__refuses_a_65th_worker(void **state)
{
    struct nk_buf b = NK_BUF_INIT(65536);
    struct nk_cluster *c;
    struct nk_error err;

    (void)state;
    nk_buf_adds(&b, MODEL "workers:\n", NULL);
    for (int i = 0; i < 64; i++)
        nk_buf_addf(&b, NULL, "- {id: w%d, address: h:%d, layers: %d-%d}\n", i, i + 1, i, i + 1);
    assert_int_equal(parse(&c, nk_buf_str(&b), &err), 0);
    assert_int_equal(c->n_workers, 64);
    free(c);
    nk_buf_adds(&b, "- {id: w, address: h:99, layers: 64-65}\n", NULL);
    refuse(nk_buf_str(&b), "69: more than 64 workers");
    nk_buf_release(&b);
}

#define PAIR                                                                                       \
    "workers:\n- {id: a, address: h:1, layers: 0-4}\n- {id: b, address: h:2, layers: 4-8}\n"

static void test_cluster__reads_spares_wherever_they_stand(void **state)
{
    struct nk_cluster *c;
    struct nk_error err;

    (void)state;
    assert_int_equal(parse(&c, MODEL PAIR "spares:\n  - h:3\n  - '[::1]:4'\n", &err), 0);
    assert_int_equal(c->n_spares, 2);
    assert_string_equal(c->spares[0], "h:3");
    assert_string_equal(c->spares[1], "[::1]:4");
    free(c);
    assert_int_equal(parse(&c, "spares: [h:3]\n" MODEL PAIR, &err), 0);
    assert_int_equal(c->n_spares, 1);
    free(c);
    assert_int_equal(parse(&c, MODEL PAIR "spares: []\n", &err), 0);
    assert_int_equal(c->n_spares, 0);
    free(c);
}

static void test_cluster__refuses_spares_that_are_none(void **state)
{
    struct nk_buf b = NK_BUF_INIT(65536);

    (void)state;
    refuse(MODEL PAIR "spares: h:3\n", "7: expected a list of addresses");
    refuse(MODEL PAIR "spares: [h]\n", "7: spare 'h': HOST:PORT was expected");
    refuse(MODEL PAIR "spares:\n- h:3\n- {id: c}\n", "9: spare: expected a value");
    refuse(MODEL PAIR "spares:\n- h:3\n-\n", "9: spare: expected a value, found nothing");
    refuse(MODEL PAIR "spares: [h:3]\nspares: [h:4]\n", "8: the file: 'spares' is given twice");
    refuse(MODEL PAIR "spares:\n- h:3\n- h:4\n- h:3\n",
           "10: the spare h:3 is given twice (first in line 8)");
    refuse(MODEL PAIR "spares:\n- h:2\n", "8: the spare h:2 has the address of worker b (line 6)");
    nk_buf_adds(&b, MODEL PAIR "spares:\n", NULL);
    for (int i = 0; i < NK_CLUSTER_SPARES_MAX + 1; i++)
        nk_buf_addf(&b, NULL, "- s:%d\n", i + 1);
    refuse(nk_buf_str(&b), "40: more than 32 spares");
    nk_buf_release(&b);
}

static void test_cluster__read_says_when_there_is_no_file_or_an_endless_one(void **state)
{
    char path[] = "nk-cluster-XXXXXX";
    int fd = mkstemp(path);
    struct nk_cluster *c;
    struct nk_error err;

    (void)state;
    assert_int_equal(nk_cluster_read(&c, "/nonexistent/c.yaml", &err), NK_E_NOT_FOUND);
    assert_string_equal(err.reason, "no_file");
    assert_null(c);
    assert_int_equal(nk_cluster_read(&c, "/dev/zero", &err), NK_E_INVALID);
    assert_string_equal(err.reason, "not_a_file");
    assert_null(c);
    assert_int_equal(ftruncate(fd, 1ll << 32), 0);
    assert_int_equal(nk_cluster_read(&c, path, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "bad_cluster");
    assert_null(c);
    close(fd);
    unlink(path);
}

static void test_cluster__what_format_writes_parse_reads(void **state)
{
    struct nk_cluster *c = calloc(1, sizeof *c), *d;
    struct nk_buf b = NK_BUF_INIT(65536);
    struct nk_error err;

    (void)state;
    strcpy(c->model_id, "yes: \"quoted\" #no comment, \xc3\xa4");
    strcpy(c->model_sha256, SHA);
    strcpy(c->vocab_path, "/a folder/with: colon/v.gguf");
    strcpy(c->tls_ca, "/tls/ca.pem");
    strcpy(c->tls_certificate, "/tls/me.pem");
    strcpy(c->tls_key, "/tls/me.key");
    c->epoch = 3;
    c->f16 = true;
    c->n_workers = 2;
    c->workers[0] = (struct nk_cluster_worker){ "null", "[::1]:5530", 0, 3, 0, 0 };
    c->workers[1] = (struct nk_cluster_worker){ "12", "h:5531", 3, 8, 0, 0 };
    c->n_spares = 2;
    strcpy(c->spares[0], "[::1]:5532");
    strcpy(c->spares[1], "spare:5533");
    assert_int_equal(nk_cluster_format(c, &b, &err), 0);
    if (parse(&d, nk_buf_str(&b), &err))
        fail_msg("%s in\n%s", err.msg, nk_buf_str(&b));
    assert_string_equal(d->model_id, c->model_id);
    assert_string_equal(d->model_sha256, c->model_sha256);
    assert_string_equal(d->vocab_path, c->vocab_path);
    assert_string_equal(d->tls_ca, c->tls_ca);
    assert_string_equal(d->tls_certificate, c->tls_certificate);
    assert_string_equal(d->tls_key, c->tls_key);
    assert_true(d->epoch == 3);
    assert_int_equal(d->f16, c->f16);
    assert_int_equal(d->n_workers, 2);
    assert_int_equal(d->n_spares, 2);
    for (int i = 0; i < 2; i++)
        assert_string_equal(d->spares[i], c->spares[i]);
    for (int i = 0; i < 2; i++) {
        assert_string_equal(d->workers[i].id, c->workers[i].id);
        assert_string_equal(d->workers[i].address, c->workers[i].address);
        assert_int_equal(d->workers[i].layer_begin, c->workers[i].layer_begin);
        assert_int_equal(d->workers[i].layer_end, c->workers[i].layer_end);
    }
    free(d);
    c->tls_ca[0] = '\0';
    strcpy(c->identity, "/state/identity");
    nk_buf_reset(&b);
    assert_int_equal(nk_cluster_format(c, &b, &err), 0);
    if (parse(&d, nk_buf_str(&b), &err))
        fail_msg("%s in\n%s", err.msg, nk_buf_str(&b));
    assert_string_equal(d->identity, c->identity);
    free(c);
    free(d);
    nk_buf_release(&b);
}

static void test_cluster__format_writes_a_relative_vocab_as_a_full_path(void **state)
{
    struct nk_cluster *c = calloc(1, sizeof *c), *d;
    struct nk_buf b = NK_BUF_INIT(65536);
    struct nk_error err;
    char folder[4096], expected[8192];

    (void)state;
    assert_non_null(getcwd(folder, sizeof folder));
    snprintf(expected, sizeof expected, "%s/v.gguf", folder);
    strcpy(c->model_id, "x");
    strcpy(c->model_sha256, SHA);
    strcpy(c->vocab_path, "v.gguf");
    c->n_workers = 1;
    c->workers[0] = (struct nk_cluster_worker){ "a", "h:1", 0, 3, 0, 0 };
    assert_int_equal(nk_cluster_format(c, &b, &err), 0);
    assert_int_equal(parse(&d, nk_buf_str(&b), &err), 0);
    assert_string_equal(d->vocab_path, expected);
    free(c);
    free(d);
    nk_buf_release(&b);
}

static void test_cluster__format_keeps_to_the_ceiling_of_its_buffer(void **state)
{
    struct nk_cluster *c = calloc(1, sizeof *c);
    struct nk_buf b = NK_BUF_INIT(16);
    struct nk_error err;

    (void)state;
    strcpy(c->model_id, "x");
    strcpy(c->model_sha256, SHA);
    c->n_workers = 1;
    c->workers[0] = (struct nk_cluster_worker){ "a", "h:1", 0, 3, 0, 0 };
    assert_int_equal(nk_cluster_format(c, &b, &err), NK_E_EXHAUSTED);
    free(c);
    nk_buf_release(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cluster__reads_the_form_of_its_header),
        cmocka_unit_test(test_cluster__dtype_is_f32_where_not_given_and_vocab_empty),
        cmocka_unit_test(test_cluster__reads_the_files_of_tls_relative_to_itself),
        cmocka_unit_test(test_cluster__reads_an_identity_relative_to_itself_and_the_epoch),
        cmocka_unit_test(test_cluster__sorts_workers_by_their_layers),
        cmocka_unit_test(test_cluster__takes_a_hash_in_capitals),
        cmocka_unit_test(test_cluster__refuses_what_is_not_the_form_with_its_line),
        cmocka_unit_test(test_cluster__refuses_addresses_that_cannot_be_dialled),
        cmocka_unit_test(test_cluster__refuses_layers_of_another_form),
        cmocka_unit_test(test_cluster__refuses_gaps_overlaps_and_doubles_naming_both),
        cmocka_unit_test(test_cluster__expands_nothing_and_ends_at_the_first_bracket_too_many),
        cmocka_unit_test(test_cluster__refuses_bytes_that_are_not_yaml),
        cmocka_unit_test(test_cluster__refuses_a_file_over_its_ceiling),
        cmocka_unit_test(test_cluster__refuses_a_65th_worker),
        cmocka_unit_test(test_cluster__reads_spares_wherever_they_stand),
        cmocka_unit_test(test_cluster__refuses_spares_that_are_none),
        cmocka_unit_test(test_cluster__read_says_when_there_is_no_file_or_an_endless_one),
        cmocka_unit_test(test_cluster__what_format_writes_parse_reads),
        cmocka_unit_test(test_cluster__format_writes_a_relative_vocab_as_a_full_path),
        cmocka_unit_test(test_cluster__format_keeps_to_the_ceiling_of_its_buffer),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
