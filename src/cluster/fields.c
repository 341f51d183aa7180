/* Values out of JSON that a stranger or an old file gives, and text for sentences. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cluster/cluster_int.h"
#include "cluster/token.h"

bool nk__json_text(const json_t *object, const char *key, char *out, size_t size)
{
    const json_t *value = json_object_get(object, key);
    const char *text = json_string_value(value);
    size_t length = json_string_length(value);

    if (!text || length >= size)
        return false;
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)text[i] < ' ' || text[i] == 0x7f)
            return false;
    memcpy(out, text, length + 1);
    return true;
}

bool nk__json_number(const json_t *object, const char *key, int64_t min, int64_t max, int64_t *out)
{
    const json_t *value = json_object_get(object, key);
    json_int_t n = json_integer_value(value);

    if (!json_is_integer(value) || n < min || n > max)
        return false;
    *out = n;
    return true;
}

int nk__json_addresses(const json_t *object, const char *key, char out[][46])
{
    const json_t *array = json_object_get(object, key), *value;
    size_t n = json_array_size(array), i;
    uint8_t bytes[16];

    if (!json_is_array(array) || n > NK_TOKEN_ADDRESSES_MAX)
        return -1;
    json_array_foreach(array, i, value)
    {
        const char *text = json_string_value(value);

        if (!text || strlen(text) >= 46 || !nk__address_bytes(bytes, text))
            return -1;
        snprintf(out[i], 46, "%s", text);
    }
    return (int)n;
}

json_t *nk__json_of_addresses(const char (*addresses)[46], int n)
{
    json_t *array = json_array();

    for (int i = 0; array && i < n; i++) {
        if (json_array_append_new(array, json_string(addresses[i]))) {
            json_decref(array);
            array = NULL;
        }
    }
    return array;
}

void nk__span_format(char out[32], int64_t s)
{
    uint64_t n = s < 0 ? 0 - (uint64_t)s : (uint64_t)s;

    if (n < 120)
        snprintf(out, 32, "%llu s", (unsigned long long)n);
    else if (n < 7200)
        snprintf(out, 32, "%llu min", (unsigned long long)(n / 60));
    else if (n < 48 * 3600)
        snprintf(out, 32, "%llu h", (unsigned long long)(n / 3600));
    else
        snprintf(out, 32, "%llu days", (unsigned long long)(n / 86400));
}
