#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cli/cluster_view.h"

static const char cluster[] =
    "{ 'members': ["
    "   { 'id': '01', 'name': 'attic', 'state': 'fetching', 'address': '10.0.0.1', 'memory': 0,"
    "     'holdings': [ { 'begin': 0, 'end': 4, 'state': 'fetching',"
    "       'progress': { 'bytes': 26214400, 'of': 104857600, 'rate': 5242880 } } ] },"
    "   { 'id': '02', 'name': 'desk', 'state': 'serving', 'address': '10.0.0.2',"
    "     'holdings': [ { 'begin': 4, 'end': 8, 'state': 'ready' } ] } ],"
    "  'links': ["
    "   { 'a': '02', 'b': '01', 'rtt_ms': 0.5, 'rate': 104857600 },"
    "   { 'a': '01', 'b': '02', 'rtt_ms': 0.42, 'rate': 52428800 },"
    "   { 'a': '02', 'b': '03', 'rtt_ms': 7, 'rate': 0 } ],"
    "  'plan': { 'epoch': 3, 'predicted': 20.0, 'predicted_all': 80.0, 'predicted_ttft_ms': 900,"
    "    'measured': 10.0, 'warning': 'one stream gets 0.50\\u001b', 'stages': [ ["
    "      { 'name': 'attic', 'begin': 0, 'end': 4 }, { 'name': 'desk', 'begin': 4, 'end': 8 } ] ] "
    "},"
    "  'spares': [] }";

/* What is printed of JSON with ' for ". The caller frees. */
static char *print(const char *text)
{
    char *json = strdup(text), *printed = NULL;
    size_t size;
    json_t *j;
    FILE *out = open_memstream(&printed, &size);

    assert_true(json && out);
    for (char *p = json; *p; p++)
        *p = *p == '\'' ? '"' : *p;
    j = json_loads(json, 0, NULL);
    assert_non_null(j);
    nk_cluster_view_print(out, j);
    fclose(out);
    json_decref(j);
    free(json);
    return printed;
}

static void has(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("'%s' is not in\n%s", part, text);
}

static void test_cluster_view__fetches_links_and_rates_are_told(void **state)
{
    char *text = print(cluster);

    (void)state;
    has(text, "0-4 fetching 25 % at 5.0 MiB/s, 15 s left\n");
    has(text, "predicted: 20.0 tokens/s for one stream");
    has(text, "measured: 10.0 tokens/s for a stream that runs alone\n");
    has(text, "warning: one stream gets 0.50^[\n");
    has(text, "link attic - desk: 0.42 ms, 50.0 MiB/s to attic, 100.0 MiB/s to desk\n");
    has(text, "link desk - 03: 7.00 ms\n"); /* one way only, to who is not known */
    assert_null(strstr(text, "link desk - attic"));
    free(text);
}

static void test_cluster_view__of_many_links_the_first_are_told(void **state)
{
    char many[8192] = "{ 'members': [], 'links': [", *text;
    size_t n = strlen(many);

    (void)state;
    for (int i = 0; i < 25; i++)
        n += (size_t)snprintf(many + n, sizeof many - n,
                              "%s { 'a': 'm', 'b': 'n%d', 'rtt_ms': 1, 'rate': 1 }", i ? "," : "",
                              i);
    snprintf(many + n, sizeof many - n, "] }");
    text = print(many);
    has(text, "link m - n19: ");
    assert_null(strstr(text, "link m - n20: "));
    has(text, "and 5 links more (status --json)\n");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cluster_view__fetches_links_and_rates_are_told),
        cmocka_unit_test(test_cluster_view__of_many_links_the_first_are_told),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
