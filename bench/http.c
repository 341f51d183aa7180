#include "bench/http.h"

#include <string.h>

#include <curl/curl.h>

#include "base/buf.h"
#include "base/clock.h"

enum { LINE_BYTES_MAX = 1 << 20 };

struct answer {
    struct nk_buf line;
    nk_http_line on_line;
    void *user;
};

void nk_http_init(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

/* libcurl's write callback: anything but size * n ends the transfer. */
static size_t take(char *data, size_t size, size_t n, void *arg)
{
    struct answer *a = arg;
    uint64_t now = nk_now_ns();
    const char *p = data, *end = data + size * n;

    while (p < end) {
        const char *newline = memchr(p, '\n', (size_t)(end - p)), *stop = newline ? newline : end;

        if (nk_buf_add(&a->line, p, (size_t)(stop - p), NULL))
            return 0;
        p = stop + (newline != NULL);
        if (!newline)
            break;
        if (a->line.size && a->line.data[a->line.size - 1] == '\r')
            a->line.data[--a->line.size] = 0;
        a->on_line(a->user, nk_buf_str(&a->line), now);
        nk_buf_reset(&a->line);
    }
    return size * n;
}

int nk_http_lines(const char *url, const char *body, uint32_t timeout_ms, nk_http_line on_line,
                  void *user, struct nk_error *err)
{
    struct answer a = { NK_BUF_INIT(LINE_BYTES_MAX), on_line, user };
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    char text[CURL_ERROR_SIZE] = "";
    CURL *curl = curl_easy_init();
    long status = 0;
    CURLcode code;
    int rc = 0;

    if (!curl || !headers) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a request to %s", url);
        goto out;
    }
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    if (body)
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &a);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, text);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)timeout_ms);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_TCP_NODELAY, 1L);
    code = curl_easy_perform(curl);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    if (code == CURLE_OK && a.line.size) /* the last line may have no end */
        on_line(user, nk_buf_str(&a.line), nk_now_ns());
    if (code == CURLE_OPERATION_TIMEDOUT)
        rc = nk_fail(err, NK_E_DEADLINE, "timeout", "%s did not answer within %u ms", url,
                     timeout_ms);
    else if (code != CURLE_OK)
        rc = nk_fail(err, NK_E_UNAVAILABLE, "unreachable", "%s: %s", url,
                     text[0] ? text : curl_easy_strerror(code));
    else if (status != 200)
        rc = nk_fail(err, NK_E_UNKNOWN, "http_status", "%s answered with status %ld", url, status);
out:
    curl_slist_free_all(headers);
    if (curl)
        curl_easy_cleanup(curl);
    nk_buf_release(&a.line);
    return rc;
}
