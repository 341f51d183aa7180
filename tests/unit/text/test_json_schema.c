#include "text/json_schema.h"

#include "text/grammar.h"
#include "unit/text/text_test.h"

static char *grammar_of(const char *schema)
{
    struct nk_buf buf = NK_BUF_INIT(1 << 20);
    struct nk_error err = { 0 };
    json_error_t why;
    json_t *s = json_loads(schema, JSON_DECODE_ANY, &why);

    if (!s)
        fail_msg("%s\n%s", schema, why.text);
    if (nk_json_schema_to_grammar(s, NULL, &buf, &err))
        fail_msg("%s\n%s", schema, err.msg);
    json_decref(s);
    return nk_buf_take(&buf, NULL);
}

/* Byte by byte, as in test_grammar.c: VOCAB_BPE has each byte's token at its value. */
static bool takes(const nk_vocab *v, const char *grammar, const char *text)
{
    struct nk_error err = { 0 };
    nk_grammar *g;
    bool ok = true;

    if (nk_grammar_new(&g, nk_vocab_llama(v), grammar, &err))
        fail_msg("%s\n%s", err.msg, grammar);
    for (const char *p = text; *p && ok; p++) {
        assert_int_equal(nk_grammar_allows(g, (uint8_t)*p, &ok, &err), 0);
        if (ok)
            assert_int_equal(nk_grammar_accept(g, (uint8_t)*p, &err), 0);
    }
    if (ok)
        assert_int_equal(nk_grammar_allows(g, nk_vocab_eos(v), &ok, NULL), 0);
    nk_grammar_free(g);
    return ok;
}

static const struct {
    const char *schema, *good[12], *bad[12];
} cases[] = {
    { "true", { "1", "null", "{\"a\": [1, {}]}", "\"x\"" }, { "", "nul", "{a:1}", "[1,]" } },
    { "{}", { "1", "[]" }, { "" } },
    { "{\"type\":\"string\"}",
      { "\"\"", "\"a\\n\\u00e9\\\\\\\"\"", "\"\xE4\xBD\xA0\xF0\x9F\x98\x80\"",
        "\"\\ud83d\\ude00\"" },
      { "a", "\"", "\"\n\"", "\"\\x\"", "\"\\u12\"", "\"\\ud83d\"", "\"\\ude00\"", "1" } },
    { "{\"type\":\"string\",\"minLength\":2,\"maxLength\":3}",
      { "\"ab\"", "\"abc\"", "\"\xF0\x9F\x98\x80\\n\"", "\"\\ud83d\\ude00x\"" },
      { "\"a\"", "\"abcd\"", "\"\"", "\"\xF0\x9F\x98\x80\"" } },
    { "{\"type\":\"string\",\"minLength\":1}", { "\"a\"", "\"abcdefgh\"" }, { "\"\"" } },
    { "{\"type\":\"integer\"}",
      { "0", "-1", "123456789012345678" },
      { "01", "1.0", "-", "+1", "1e3" } },
    { "{\"type\":\"number\"}",
      { "0", "-1.5", "2e10", "1.5E-7" },
      { ".5", "1.", "1e", "00", "NaN" } },
    { "{\"type\":\"boolean\"}", { "true", "false" }, { "True", "1" } },
    { "{\"type\":\"null\"}", { "null" }, { "nil", "0" } },
    { "{\"type\":[\"string\",\"null\"],\"maxLength\":1}",
      { "\"a\"", "null", "\"\"" },
      { "\"ab\"", "1" } },
    { "{\"enum\":[\"a\",\"b\\\"\\n\",1,2.5,null,true,[1,{\"x\":\"y\"}]]}",
      { "\"a\"", "\"b\\\"\\n\"", "1", "2.5", "null", "true", "[1, {\"x\": \"y\"}]" },
      { "\"c\"", "2", "a", "false" } },
    { "{\"const\":\"\xE4\xBD\xA0\"}", { "\"\xE4\xBD\xA0\"" }, { "\"x\"" } },
    { "{\"const\":0.1}", { "0.1" }, { "0.10" } },
    { "{\"type\":\"string\",\"enum\":[\"a\",1]}", { "\"a\"" }, { "1" } },
    { "{\"anyOf\":[{\"type\":\"integer\"},{\"const\":\"x\"}]}",
      { "5", "\"x\"" },
      { "\"y\"", "5.5" } },
    { "{\"oneOf\":[{\"type\":\"null\"},{\"type\":\"boolean\"}],\"description\":\"d\"}",
      { "null", "true" },
      { "0" } },
    /* arrays */
    { "{\"type\":\"array\"}", { "[]", "[1, \"a\", []]" }, { "[", "[1 2]" } },
    { "{\"type\":\"array\",\"items\":{\"type\":\"integer\"}}",
      { "[]", "[1]", "[1, 2,3]", "[\n  1,\n  2\n]" },
      { "[\"a\"]", "[1,]", "[,1]" } },
    { "{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"minItems\":2,\"maxItems\":3}",
      { "[1, 2]", "[1,2,3]" },
      { "[]", "[1]", "[1,2,3,4]" } },
    { "{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"minItems\":1}",
      { "[1]", "[1,2,3,4,5]" },
      { "[]" } },
    { "{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"maxItems\":2}",
      { "[]", "[1]", "[1,2]" },
      { "[1,2,3]" } },
    { "{\"type\":\"array\",\"maxItems\":0}", { "[]" }, { "[1]" } },
    { "{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"maxItems\":1}",
      { "[]", "[1]" },
      { "[1,2]" } },
    { "{\"prefixItems\":[{\"type\":\"integer\"},{\"type\":\"string\"}],\"items\":false}",
      { "[]", "[1]", "[1, \"a\"]" },
      { "[\"a\"]", "[1, \"a\", 2]" } },
    { "{\"type\":\"array\",\"prefixItems\":[{\"type\":\"integer\"},{\"type\":\"string\"}],"
      "\"minItems\":2,\"items\":{\"type\":\"null\"},\"maxItems\":3}",
      { "[1, \"a\"]", "[1, \"a\", null]" },
      { "[]", "[1]", "[1, \"a\", 1]", "[1, \"a\", null, null]" } },
    { "{\"type\":\"array\",\"prefixItems\":[{\"type\":\"integer\"}],\"minItems\":3}",
      { "[1,2,\"x\"]", "[1,2,3,4]" },
      { "[1,2]", "[\"x\",2,3]" } },
    /* objects */
    { "{\"type\":\"object\"}", { "{}", "{\"a\": 1, \"b\": {}}" }, { "[]", "{\"a\"}", "{,}" } },
    { "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{\"type\":"
      "\"string\"}},\"required\":[\"a\",\"b\"],\"additionalProperties\":false}",
      { "{\"a\": 1, \"b\": \"x\"}", "{\"a\":1,\"b\":\"x\"}", "{\n  \"a\": 1,\n  \"b\": \"x\"\n}" },
      { "{}", "{\"a\": 1}", "{\"b\": \"x\", \"a\": 1}", "{\"a\": 1, \"b\": \"x\", \"c\": 1}",
        "{\"a\": 1, \"b\": 2}", "{\"a\": 1, \"b\": \"x\",}" } },
    { "{\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{\"type\":\"null\"},\"c\":{\"type\":"
      "\"null\"}},\"required\":[\"b\"]}",
      { "{\"b\":null}", "{\"a\":null,\"b\":null}", "{\"b\":null,\"c\":null}",
        "{\"a\":null,\"b\":null,\"c\":null}" },
      { "{}", "{\"a\":null}", "{\"a\":null,\"c\":null}", "{\"c\":null}", "{\"b\":null,}",
        "{,\"b\":null}", "{\"b\":null\"c\":null}" } },
    { "{\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{\"type\":\"null\"}}}",
      { "{}", "{\"a\":null}", "{\"b\":null}", "{\"a\":null,\"b\":null}" },
      { "{\"x\":1}", "{\"b\":null,\"a\":null}" } },
    { "{\"type\":\"object\",\"additionalProperties\":{\"type\":\"integer\"}}",
      { "{}", "{\"x\": 1, \"y z\": 2}" },
      { "{\"x\": \"1\"}", "{\"\": 1}" } },
    { "{\"type\":\"object\",\"properties\":{\"ab\":{\"type\":\"integer\"},\"ac\":{\"type\":"
      "\"null\"},\"abc\":{\"type\":\"null\"}},\"required\":[\"ab\"],\"additionalProperties\":{"
      "\"type\":\"string\"}}",
      { "{\"ab\": 1}", "{\"ab\": 1, \"abc\": null}",
        "{\"ab\": 1, \"ac\": null, \"a\": \"x\", \"abcd\": \"y\", \"ad\": \"\", \"b\": \"\"}" },
      { "{\"ab\": \"x\"}", "{\"ab\": 1, \"ab\": \"x\"}", "{\"ab\": 1, \"abc\": \"x\"}",
        "{\"ab\": 1, \"ac\": \"x\"}", "{\"a\": \"x\"}", "{\"ab\": 1, \"d\": 2}" } },
    { "{\"properties\":{\"\xC3\xA9\\\"\":{\"type\":\"null\"}},\"required\":[\"\xC3\xA9\\\"\"]}",
      { "{\"\xC3\xA9\\\"\":null}" },
      { "{\"\xC3\xA9\":null}" } },
    { "{\"allOf\":[{\"$ref\":\"#/$defs/"
      "a\"},{\"type\":\"object\",\"properties\":{\"y\":{\"type\":\"null\"}},\"required\":[\"y\"]}],"
      "\"$defs\":{\"a\":{\"type\":\"object\",\"properties\":{\"x\":{\"type\":\"null\"}},"
      "\"required\":[\"x\"]}}}",
      { "{\"x\":null,\"y\":null}" },
      { "{\"x\":null}", "{\"y\":null}", "{}" } },
    { "{\"properties\":{\"p\":{\"description\":\"d\",\"allOf\":[{\"$ref\":\"#/definitions/"
      "n\"}]}},\"definitions\":{\"n\":{\"type\":\"integer\"}}}",
      { "{\"p\": 1}" },
      { "{\"p\": \"1\"}" } },
    /* a part of which nothing is certainly valid drops out, and not the others with it */
    { "{\"anyOf\":[{\"type\":\"string\",\"not\":{\"format\":\"date\"}},{\"type\":\"integer\"}]}",
      { "1" },
      { "\"2020-01-01\"", "1.5" } },
    /* references */
    { "{\"$ref\":\"#/$defs/"
      "node\",\"$defs\":{\"node\":{\"type\":\"object\",\"properties\":{\"v\":{\"type\":\"integer\"}"
      ",\"next\":{\"anyOf\":[{\"$ref\":\"#/$defs/"
      "node\"},{\"type\":\"null\"}]}},\"required\":[\"v\",\"next\"]}}}",
      { "{\"v\": 1, \"next\": null}",
        "{\"v\": 1, \"next\": {\"v\": 2, \"next\": {\"v\": 3, \"next\": null}}}" },
      { "{\"v\": 1}", "{\"v\": 1, \"next\": {}}" } },
    { "{\"type\":\"array\",\"items\":{\"$ref\":\"#\"}}", { "[]", "[[], [[]]]" }, { "[1]" } },
    { "{\"$ref\":\"#/$defs/a~1b%20c~0\",\"$defs\":{\"a/b c~\":{\"const\":1}}}", { "1" }, { "2" } },
    { "{\"anyOf\":[{\"type\":\"null\"},{\"$ref\":\"#/anyOf/0\"}]}", { "null" }, { "1" } },
    { "{\"anyOf\":[{\"$ref\":\"#\"},{\"type\":\"null\"}]}",
      { "null" },
      { "1" } }, /* left recursion */
    /* numbers in a range */
    { "{\"type\":\"integer\",\"minimum\":0}", { "0", "7", "1234567890" }, { "-1", "-0", "00" } },
    { "{\"type\":\"integer\",\"minimum\":1,\"maximum\":100}",
      { "1", "9", "10", "99", "100" },
      { "0", "101", "110", "200", "-1", "1000" } },
    { "{\"type\":\"integer\",\"minimum\":-5,\"maximum\":12}",
      { "-5", "-1", "0", "5", "12" },
      { "-6", "13", "-12", "20", "-0" } },
    { "{\"type\":\"integer\",\"exclusiveMinimum\":347,\"exclusiveMaximum\":1205}",
      { "348", "999", "1000", "1199", "1204" },
      { "347", "1205", "1210", "340", "99" } },
    { "{\"type\":\"integer\",\"maximum\":-10}", { "-10", "-11", "-99999" }, { "-9", "0", "10" } },
    { "{\"type\":\"integer\",\"minimum\":5,\"maximum\":5}", { "5" }, { "4", "6" } },
    { "{\"type\":\"number\",\"minimum\":0,\"maximum\":1}",
      { "0", "0.5", "1", "1.000", "0.0" },
      { "1.5", "-0.1", "1.001", "2", "10" } },
    { "{\"type\":\"number\",\"exclusiveMinimum\":0}",
      { "0.1", "1", "0.001", "17.5" },
      { "0", "0.0", "-1" } },
    { "{\"type\":\"number\",\"minimum\":-2,\"exclusiveMaximum\":3}",
      { "-2", "-1.99", "-0.5", "0", "2.99", "-2.0" },
      { "-2.1", "3", "3.0", "-3" } },
    { "{\"type\":\"number\",\"exclusiveMinimum\":-3,\"exclusiveMaximum\":-1}",
      { "-2", "-2.9", "-1.1" },
      { "-3", "-1", "-1.0", "-0.5", "2" } },
    /* formats */
    { "{\"type\":\"string\",\"format\":\"date\"}",
      { "\"2024-12-31\"", "\"1999-02-28\"", "\"2000-04-30\"" },
      { "\"2024-13-01\"", "\"2024-00-10\"", "\"2024-04-31\"", "\"2024-02-30\"", "\"24-01-01\"" } },
    { "{\"type\":\"string\",\"format\":\"time\"}",
      { "\"23:59:59Z\"", "\"00:00:00.123+05:30\"" },
      { "\"24:00:00Z\"", "\"12:60:00Z\"", "\"12:00:00\"" } },
    { "{\"type\":\"string\",\"format\":\"date-time\"}",
      { "\"2024-05-06T07:08:09Z\"" },
      { "\"2024-05-06 07:08:09Z\"" } },
    { "{\"type\":\"string\",\"format\":\"uuid\"}",
      { "\"123e4567-e89b-12d3-a456-426614174000\"" },
      { "\"123e4567e89b12d3a456426614174000\"" } },
    { "{\"type\":\"string\",\"format\":\"ipv4\"}",
      { "\"192.168.0.255\"", "\"0.0.0.0\"" },
      { "\"256.1.1.1\"", "\"1.2.3\"", "\"01.2.3.4\"" } },
    { "{\"type\":\"string\",\"format\":\"email\"}",
      { "\"a@b.de\"", "\"first.last@mail.example.com\"" },
      { "\"a@b\"", "\"@b.de\"", "\"a b@c.de\"" } },
    { "{\"type\":\"string\",\"format\":\"hostname\"}",
      { "\"a\"", "\"www.ex-ample.com\"" },
      { "\"-a\"", "\"a-.b\"", "\"\"" } },
    { "{\"type\":\"string\",\"format\":\"ipv6\"}",
      { "\"2001:0db8:0:0:0:0:0:1\"" },
      { "\"1:2:3\"" } },
    { "{\"type\":\"string\",\"format\":\"duration\"}",
      { "\"P3D\"", "\"PT5M\"", "\"P1DT12H\"" },
      { "\"P\"", "\"3D\"" } },
    /* patterns */
    { "{\"type\":\"string\",\"pattern\":\"^[A-Z]{2}-\\\\d+$\"}",
      { "\"AB-1\"", "\"ZZ-123\"" },
      { "\"A-1\"", "\"AB-\"", "\"AB-1x\"", "\"xAB-1\"" } },
    { "{\"pattern\":\"^(foo|ba[rz])*(?:q)?$\"}",
      { "\"\"", "\"foobarbaz\"", "\"fooq\"" },
      { "\"qq\"", "\"ba\"" } },
    { "{\"pattern\":\"^a|b$\"}", { "\"a\"", "\"axyz\"", "\"xyzb\"" }, { "\"xa\"", "\"bx\"" } },
    { "{\"pattern\":\"[0-9]\"}", { "\"5\"", "\"a5b\"", "\"\\n5\"" }, { "\"\"", "\"ab\"" } },
    { "{\"pattern\":\"^.$\"}",
      { "\"x\"", "\"\\\"\"", "\"\\\\\"", "\"\\t\"", "\"\xF0\x9F\x98\x80\"" },
      { "\"\\n\"", "\"\"", "\"xy\"", "\"\"\"" } },
    { "{\"pattern\":\"^[^a\\\\n]\\\\\\\\\\\"$\"}",
      { "\"b\\\\\\\"\"", "\"\\\"\\\\\\\"\"" },
      { "\"a\\\\\\\"\"", "\"\\n\\\\\\\"\"" } },
    { "{\"pattern\":\"^\\\\w\\\\W\\\\s\\\\S\\\\D$\"}",
      { "\"a- bc\"", "\"_.\\tx-\"" },
      { "\"-- bc\"", "\"aa bc\"", "\"a- b5\"" } },
    { "{\"pattern\":\"^x{2,3}?y{2}z{1,}$\"}",
      { "\"xxyyz\"", "\"xxxyyzz\"" },
      { "\"xyyz\"", "\"xxyz\"", "\"xxyy\"" } },
    { "{\"pattern\":\"^\\\\x41\\\\u00e9[\\\\]\\\\-a-]\\\\.\\\\/(?<n>\\\\$)$\"}",
      { "\"A\xC3\xA9]./$\"", "\"A\xC3\xA9-./$\"" },
      { "\"B\"", "\"A\xC3\xA9x./$\"" } },
    /* annotations and words that are no keywords */
    { "{\"type\":\"null\",\"id\":\"x\",\"x-vendor\":{\"a\":1},\"title\":\"t\",\"$comment\":\"c\","
      "\"examples\":[1],\"deprecated\":true,\"readOnly\":true,\"markdownDescription\":\"m\","
      "\"minimun\":3}",
      { "null" },
      { "1" } },
    { "{\"type\":\"string\",\"nullable\":true}", { "\"a\"", "null" }, { "1" } },
    /* allOf closes the part that says so */
    { "{\"allOf\":[{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"null\"}}}],"
      "\"properties\":{\"b\":{\"type\":\"null\"}},\"additionalProperties\":false,\"required\":["
      "\"b\"]}",
      { "{\"b\":null}" },
      { "{\"a\":null,\"b\":null}", "{\"a\":null}", "{}" } },
    { "{\"allOf\":[{\"properties\":{\"a\":{\"type\":\"null\"}},\"additionalProperties\":{\"type\":"
      "\"integer\"}},{\"properties\":{\"b\":{\"minimum\":3}}}]}",
      { "{\"a\":null,\"b\":3}", "{}", "{\"b\":4}" },
      { "{\"b\":2}", "{\"b\":3.5}" } },
    { "{\"allOf\":[{\"type\":\"string\",\"minLength\":2},{\"maxLength\":3}]}",
      { "\"ab\"", "\"abc\"" },
      { "\"a\"", "\"abcd\"", "1" } },
    { "{\"allOf\":[{\"properties\":{\"a\":{\"type\":[\"null\",\"string\"]}}},{\"properties\":{"
      "\"a\":{\"type\":[\"string\",\"integer\"]}}}]}",
      { "{\"a\":\"x\"}", "{}" },
      { "{\"a\":null}", "{\"a\":1}" } },
    { "{\"$ref\":\"#/$defs/"
      "a\",\"properties\":{\"y\":{\"type\":\"null\"}},\"required\":[\"y\"],\"$defs\":{\"a\":{"
      "\"properties\":{\"x\":{\"type\":\"null\"}}}}}",
      { "{\"y\":null,\"x\":null}", "{\"y\":null}" },
      { "{\"x\":null}" } },
    { "{\"unevaluatedProperties\":false,\"allOf\":[{\"properties\":{\"a\":{\"type\":\"null\"}}}],"
      "\"properties\":{\"b\":{\"type\":\"null\"}}}",
      { "{\"b\":null,\"a\":null}", "{}" },
      { "{\"c\":null}" } },
    /* alternatives beside other keywords */
    { "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{\"type\":\"null\"}},"
      "\"anyOf\":[{\"required\":[\"a\"]},{\"required\":[\"b\"]}]}",
      { "{\"a\":null}", "{\"b\":null}", "{\"a\":null,\"b\":null}" },
      { "{}" } },
    { "{\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{\"type\":\"null\"}},\"oneOf\":[{"
      "\"required\":[\"a\"]},{\"required\":[\"b\"]}]}",
      { "{\"a\":null}", "{\"b\":null}" },
      { "{}", "{\"a\":null,\"b\":null}" } },
    { "{\"oneOf\":[{\"type\":\"string\",\"maxLength\":3},{\"type\":\"string\",\"minLength\":3}]}",
      { "\"ab\"", "\"abcd\"" },
      { "\"abc\"" } },
    { "{\"oneOf\":[{\"type\":\"integer\",\"minimum\":0},{\"type\":\"integer\",\"maximum\":10}]}",
      { "-1", "11" },
      { "0", "10", "5" } },
    { "{\"oneOf\":[{\"enum\":[\"a\",\"b\"]},{\"enum\":[\"b\",\"c\"]}]}",
      { "\"a\"", "\"c\"" },
      { "\"b\"" } },
    { "{\"type\":\"integer\",\"anyOf\":[{\"multipleOf\":3},{\"minimum\":100}]}",
      { "3", "101", "99" },
      { "4" } },
    { "{\"anyOf\":[{\"$ref\":\"#/$defs/"
      "a\"},{\"type\":\"null\"}],\"$defs\":{\"a\":{\"anyOf\":[{\"$ref\":\"#\"},{\"const\":1}]}}}",
      { "1", "null" },
      { "2" } },
    /* not, if and dependencies */
    { "{\"type\":\"string\",\"not\":{\"enum\":[\"ab\",\"a\\\"c\"]}}",
      { "\"a\"", "\"abc\"", "\"a\\\"\"" },
      { "\"ab\"", "\"a\\\"c\"" } },
    { "{\"type\":\"integer\",\"not\":{\"const\":0}}", { "1", "-5", "10" }, { "0" } },
    { "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{\"type\":\"null\"}},"
      "\"not\":{\"required\":[\"a\",\"b\"]}}",
      { "{\"a\":null}", "{\"b\":null}", "{}" },
      { "{\"a\":null,\"b\":null}" } },
    { "{\"type\":[\"string\",\"integer\"],\"not\":{\"type\":\"string\"}}", { "1" }, { "\"a\"" } },
    { "{\"type\":\"string\",\"not\":{\"pattern\":\"x\"}}",
      { "\"ab\"", "\"\"" },
      { "\"axb\"", "\"x\"" } },
    { "{\"properties\":{\"k\":{\"enum\":[\"a\",\"b\"]},\"v\":{\"type\":\"null\"}},\"required\":["
      "\"k\"],\"if\":{\"properties\":{\"k\":{\"const\":\"a\"}}},\"then\":{\"required\":[\"v\"]}}",
      { "{\"k\":\"a\",\"v\":null}", "{\"k\":\"b\"}", "{\"k\":\"b\",\"v\":null}" },
      { "{\"k\":\"a\"}" } },
    { "{\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{\"type\":\"null\"}},\"dependentRequired\":"
      "{\"a\":[\"b\"]}}",
      { "{}", "{\"b\":null}", "{\"a\":null,\"b\":null}" },
      { "{\"a\":null}" } },
    /* names of members */
    { "{\"type\":\"object\",\"patternProperties\":{\"^x-\":{\"type\":\"null\"}},"
      "\"additionalProperties\":false}",
      { "{}", "{\"x-a\":null}", "{\"x-\":null}" },
      { "{\"x-a\":1}", "{\"y\":null}" } },
    { "{\"properties\":{\"x-a\":{\"type\":\"string\"}},\"patternProperties\":{\"^x-\":{"
      "\"maxLength\":1},\"^y\":{\"type\":\"null\"}},\"additionalProperties\":{\"type\":\"integer\"}"
      "}",
      { "{\"x-a\":\"b\"}", "{\"y\":null}", "{\"z\":1}", "{\"x-a\":\"b\",\"x-b\":\"c\",\"z\":1}" },
      { "{\"x-a\":\"bb\"}", "{\"x-b\":\"bb\"}", "{\"y\":1}", "{\"z\":null}" } },
    { "{\"type\":\"object\",\"propertyNames\":{\"pattern\":\"^[a-z]{2}$\"},"
      "\"additionalProperties\":{\"type\":\"integer\"}}",
      { "{\"ab\":1}", "{}" },
      { "{\"a\":1}", "{\"Ab\":1}", "{\"abc\":1}" } },
    { "{\"type\":\"object\",\"propertyNames\":{\"enum\":[\"a\",\"b\"]},\"additionalProperties\":{"
      "\"type\":\"integer\"}}",
      { "{\"a\":1}", "{\"a\":1,\"b\":2}", "{\"b\":1}", "{}" },
      { "{\"c\":1}", "{\"a\":\"x\"}" } },
    { "{\"type\":\"object\",\"propertyNames\":{\"enum\":[\"a\",\"b1\"]},\"patternProperties\":{"
      "\"[0-9]\":{\"type\":\"null\"}}}",
      { "{\"a\":1,\"b1\":null}", "{}" },
      { "{\"c2\":null}", "{\"b1\":1}" } },
    { "{\"type\":\"object\",\"patternProperties\":{\"^a\":{\"type\":\"null\"}},\"allOf\":[{"
      "\"properties\":{\"b\":{\"type\":\"null\"}},\"unevaluatedProperties\":false}]}",
      { "{\"b\":null}", "{}" },
      { "{\"a\":null}", "{\"b\":null,\"ab\":null}" } },
    { "{\"type\":\"object\",\"required\":[\"a\"]}",
      { "{\"a\":1}", "{\"a\":1,\"b\":2}" },
      { "{}", "{\"b\":2}" } },
    { "{\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{\"type\":\"null\"},\"c\":{\"type\":"
      "\"null\"}},\"minProperties\":1,\"maxProperties\":2}",
      { "{\"a\":null}", "{\"b\":null,\"c\":null}", "{\"a\":null,\"c\":null}" },
      { "{}", "{\"a\":null,\"b\":null,\"c\":null}" } },
    { "{\"type\":\"object\",\"minProperties\":1,\"maxProperties\":3,\"additionalProperties\":{"
      "\"type\":\"null\"}}",
      { "{\"a\":null}", "{\"a\":null,\"b\":null,\"c\":null}" },
      { "{}", "{\"a\":null,\"b\":null,\"c\":null,\"d\":null}" } },
    { "{\"properties\":{\"a\":false,\"b\":{\"type\":\"null\"}}}",
      { "{\"b\":null}", "{}" },
      { "{\"a\":null}" } },
    /* lists */
    { "{\"type\":\"array\",\"items\":{\"enum\":[\"a\",\"b\",\"c\"]},\"uniqueItems\":true,"
      "\"minItems\":1,\"maxItems\":2}",
      { "[\"a\"]", "[\"a\",\"c\"]", "[\"b\", \"c\"]" },
      { "[]", "[\"a\",\"a\"]", "[\"a\",\"b\",\"c\"]" } },
    { "{\"type\":\"array\",\"items\":{\"type\":\"string\"},\"uniqueItems\":true,\"maxItems\":1}",
      { "[]", "[\"a\"]" },
      { "[\"a\",\"b\"]" } },
    { "{\"type\":\"array\",\"items\":[{\"type\":\"null\"},{\"type\":\"integer\"}],"
      "\"additionalItems\":false}",
      { "[]", "[null]", "[null,1]" },
      { "[1]", "[null,1,2]" } },
    { "{\"type\":\"array\",\"prefixItems\":[{\"type\":\"null\"},false]}",
      { "[]", "[null]" },
      { "[null,1]" } },
    { "{\"type\":\"array\",\"maxItems\":70000,\"items\":{\"type\":\"null\"}}",
      { "[]", "[null,null]" },
      { "[1]" } },
    /* numbers */
    { "{\"type\":\"number\",\"minimum\":0.5,\"maximum\":1.25}",
      { "0.5", "0.51", "1", "1.2", "1.25", "1.250", "0.9999" },
      { "0.4", "0.49", "1.26", "1.251", "2", "0", "-0.6" } },
    { "{\"type\":\"number\",\"exclusiveMinimum\":0.5,\"exclusiveMaximum\":0.75}",
      { "0.51", "0.6", "0.7499", "0.501" },
      { "0.5", "0.50", "0.75", "0.750", "0.8", "1", "0" } },
    { "{\"type\":\"number\",\"minimum\":-1.5,\"exclusiveMaximum\":-0.25}",
      { "-1.5", "-1", "-0.26", "-0.251" },
      { "-1.51", "-0.25", "-0.2", "0", "1", "-2" } },
    { "{\"type\":\"number\",\"exclusiveMaximum\":1}",
      { "0.99999999999999", "0", "-3.5" },
      { "1", "1.0", "0.99999999999999999999" } },
    { "{\"type\":\"integer\",\"minimum\":0.5,\"maximum\":3.5}", { "1", "3" }, { "0", "4" } },
    { "{\"type\":\"integer\",\"minimum\":-3.5,\"maximum\":-0.5}", { "-3", "-1" }, { "-4", "0" } },
    { "{\"type\":\"number\",\"minimum\":-1e+30,\"maximum\":1e+300}",
      { "0", "5.5", "-7" },
      { "\"a\"" } },
    { "{\"type\":\"integer\",\"minimum\":0,\"exclusiveMinimum\":true,\"maximum\":2}",
      { "1", "2" },
      { "0", "3" } },
    { "{\"type\":\"integer\",\"format\":\"int32\"}",
      { "2147483647", "-2147483648" },
      { "2147483648", "-2147483649" } },
    { "{\"type\":\"integer\",\"multipleOf\":3}", { "0", "3", "-9", "300" }, { "1", "4", "-10" } },
    { "{\"type\":\"integer\",\"multipleOf\":7,\"minimum\":10,\"maximum\":30}",
      { "14", "21", "28" },
      { "7", "35", "15", "0" } },
    { "{\"type\":\"integer\",\"multipleOf\":1000,\"minimum\":1}",
      { "1000", "25000" },
      { "0", "100", "1500" } },
    { "{\"type\":\"integer\",\"multipleOf\":50}",
      { "50", "100", "-250" },
      { "10", "20", "25", "5" } },
    { "{\"type\":\"number\",\"multipleOf\":0.01}",
      { "0", "1.25", "0.5", "-3.10" },
      { "0.001", "1.255" } },
    { "{\"type\":\"number\",\"multipleOf\":2.5}",
      { "0", "2.5", "-7.5", "10", "5.0" },
      { "1", "2.6", "0.5" } },
    { "{\"type\":\"integer\",\"multipleOf\":2.5}", { "0", "5", "10" }, { "2", "7" } },
    { "{\"type\":\"number\",\"allOf\":[{\"multipleOf\":4},{\"multipleOf\":6}]}",
      { "12", "24", "0" },
      { "4", "6" } },
    /* strings */
    { "{\"type\":\"string\",\"minLength\":2,\"maxLength\":4,\"pattern\":\"^[a-z]+$\"}",
      { "\"ab\"", "\"abcd\"" },
      { "\"a\"", "\"abcde\"", "\"AB\"" } },
    { "{\"type\":\"string\",\"format\":\"date\",\"pattern\":\"^20\"}",
      { "\"2024-05-06\"" },
      { "\"1999-05-06\"", "\"20\"" } },
    { "{\"type\":\"string\",\"format\":\"starts_with\",\"pattern\":\"^ab.*\",\"maxLength\":5}",
      { "\"ab\"", "\"abcde\"" },
      { "\"abcdef\"", "\"xab\"" } },
    { "{\"type\":\"string\",\"pattern\":\"^(?!admin)(?=.*[0-9])[a-z0-9]+$\"}",
      { "\"a1\"", "\"bdmin9\"" },
      { "\"admin1\"", "\"abc\"", "\"A1\"" } },
    { "{\"type\":\"string\",\"pattern\":\"(^a|b$)\"}", { "\"ax\"", "\"xb\"" }, { "\"xa\"" } },
    { "{\"type\":\"string\",\"format\":\"uri\"}",
      { "\"https://example.com/a?b=c#d\"", "\"mailto:a@b.de\"" },
      { "\"example\"", "\"http://a b\"", "\"\"" } },
    { "{\"type\":\"string\",\"format\":\"base64\",\"contentEncoding\":\"base64\"}",
      { "\"\"", "\"YWJj\"", "\"YQ==\"", "\"YWI=\"" },
      { "\"YQ\"", "\"Y===\"" } },
    { "{\"type\":\"string\",\"contentEncoding\":\"base64\",\"minLength\":5}",
      { "\"YWJjYWJj\"" },
      { "\"YWJj\"" } },
    { "{\"type\":\"string\",\"format\":\"url\",\"minLength\":1,\"maxLength\":2048}",
      { "\"https://www.example.com/a/b\"" },
      { "\"https://a\"", "\"\"" } },
    { "{\"type\":\"string\",\"format\":\"email\",\"maxLength\":9}",
      { "\"a@bc.de\"" },
      { "\"abcd@bc.de\"" } },
    { "{\"type\":\"string\",\"format\":\"password\"}", { "\"x\"" }, { "1" } },
    { "{\"type\":\"string\",\"format\":\"ipv6\"}",
      { "\"::1\"", "\"fe80::1\"", "\"1:2:3:4:5:6:7:8\"" },
      { "\"1::2::3\"" } },
    /* references */
    { "{\"$id\":\"http://x/y\",\"$ref\":\"http://x/y#/$defs/a\",\"$defs\":{\"a\":{\"const\":1}}}",
      { "1" },
      { "2" } },
    { "{\"$ref\":\"#foo\",\"$defs\":{\"a\":{\"$anchor\":\"foo\",\"const\":1}}}", { "1" }, { "2" } },
    { "{\"$id\":\"http://x/y\",\"$ref\":\"http://x/z.json\",\"$defs\":{\"a\":{\"$id\":\"http://x/"
      "z.json\",\"const\":1}}}",
      { "1" },
      { "2" } },
    { "{\"$ref\":\"http://x/z#\",\"$defs\":{\"a\":{\"$id\":\"http://x/z\",\"const\":1}}}",
      { "1" },
      { "2" } },
    { "{\"$ref\":\"http://x/z#/$defs/b\",\"$defs\":{\"b\":{\"const\":2},\"a\":{\"$id\":\"http://x/"
      "z\",\"$defs\":{\"b\":{\"const\":1}}}}}",
      { "1" },
      { "2" } },
    /* "#" is the schema around it that has an $id */
    { "{\"$ref\":\"#/$defs/a\",\"$defs\":{\"b\":{\"const\":2},\"a\":{\"$id\":\"http://x/"
      "z\",\"allOf\":[{\"$ref\":\"#/$defs/b\"}],\"$defs\":{\"b\":{\"const\":1}}}}}",
      { "1" },
      { "2" } },
    { "{\"$ref\":\"#foo\",\"$defs\":{\"a\":{\"$id\":\"http://x/z\",\"$defs\":{\"b\":{\"$anchor\":"
      "\"foo\",\"const\":1}}},\"b\":{\"$anchor\":\"foo\",\"const\":2}}}",
      { "2" },
      { "1" } },
    { "{\"$ref\":\"http://x/z\",\"$defs\":{\"a\":{\"$id\":\"http://x/z\",\"properties\":{\"a\":{"
      "\"$ref\":\"#\"}},\"additionalProperties\":false}}}",
      { "{\"a\": {\"a\": {}}}" },
      { "{\"b\": 1}", "{\"a\": {\"b\": 1}}", "{\"a\": 1}" } },
};

static void test_json_schema__grammar_takes_valid_texts_and_no_others(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *grammar = grammar_of(cases[i].schema);

        for (int k = 0; k < 12 && cases[i].good[k]; k++)
            if (!takes(v, grammar, cases[i].good[k]))
                fail_msg("%s\ndoes not take %s\n%s", cases[i].schema, cases[i].good[k], grammar);
        for (int k = 0; k < 12 && cases[i].bad[k]; k++)
            if (takes(v, grammar, cases[i].bad[k]))
                fail_msg("%s\ntakes %s\n%s", cases[i].schema, cases[i].bad[k], grammar);
        free(grammar);
    }
    nk_vocab_close(v);
}

static void test_json_schema__ranges_are_exact_at_every_number(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);
    struct test_random r = { 3 };

    (void)state;
    for (int round = 0; round < 40; round++) {
        int low = test_below(&r, 2400) - 1200, high = low + test_below(&r, round % 2 ? 30 : 2000);
        char schema[128], text[16], *grammar;

        snprintf(schema, sizeof schema, "{\"type\":\"integer\",\"minimum\":%d,\"maximum\":%d}", low,
                 high);
        grammar = grammar_of(schema);
        for (int n = -3300; n <= 3300; n += n > low - 3 && n < low + 3 ? 1
                                            : n > high - 3 && n < high + 3
                                                ? 1
                                                : 2 + test_below(&r, 20)) {
            snprintf(text, sizeof text, "%d", n);
            if (takes(v, grammar, text) != (n >= low && n <= high))
                fail_msg("%s: %s", schema, text);
        }
        for (int n = low - 2; n <= low + 2; n++) {
            snprintf(text, sizeof text, "%d", n);
            assert_int_equal(takes(v, grammar, text), n >= low && n <= high);
        }
        for (int n = high - 2; n <= high + 2; n++) {
            snprintf(text, sizeof text, "%d", n);
            assert_int_equal(takes(v, grammar, text), n >= low && n <= high);
        }
        free(grammar);
    }
    nk_vocab_close(v);
}

static void test_json_schema__what_is_not_understood_is_refused_by_name(void **state)
{
    static const struct {
        const char *schema, *named;
    } bad[] = {
        { "false", "nothing is valid" },
        { "1", "must be an object" },
        { "[]", "must be an object" },
        { "{\"type\":\"thing\"}", "type" },
        { "{\"type\":[]}", "type" },
        { "{\"type\":[1]}", "type" },
        { "{\"type\":5}", "type" },
        { "{\"type\":\"array\",\"uniqueItems\":true}", "uniqueItems" },
        { "{\"properties\":{\"a\":{\"type\":\"array\",\"items\":{\"contains\":1}}}}",
          "#/properties/a/items" },
        { "{\"type\":\"array\",\"minItems\":-1}", "minItems" },
        { "{\"type\":\"array\",\"minItems\":1.5}", "minItems" },
        { "{\"type\":\"array\",\"minItems\":3,\"maxItems\":2}", "minItems" },
        { "{\"type\":\"string\",\"minLength\":\"x\"}", "minLength" },
        { "{\"type\":\"string\",\"pattern\":\"a(?=b)\"}", "look-around" },
        { "{\"type\":\"string\",\"pattern\":\"(?<!b)a\"}", "look-around" },
        { "{\"type\":\"string\",\"pattern\":\"(a)\\\\1\"}", "back references" },
        { "{\"type\":\"string\",\"pattern\":\"\\\\bx\"}", "\\b" },
        { "{\"type\":\"string\",\"pattern\":\"a^b\"}", "nothing is valid" },
        { "{\"type\":\"string\",\"pattern\":\"(a\"}", "not closed" },
        { "{\"type\":\"string\",\"pattern\":\"a)\"}", "no (" },
        { "{\"type\":\"string\",\"pattern\":\"[a\"}", "not closed" },
        { "{\"type\":\"string\",\"pattern\":\"[z-a]\"}", "reversed" },
        { "{\"type\":\"string\",\"pattern\":\"*a\"}", "nothing to repeat" },
        { "{\"type\":\"string\",\"pattern\":\"a{2\"}", "{}" },
        { "{\"type\":\"string\",\"pattern\":\"a{99999}\"}", "{}" },
        { "{\"type\":\"string\",\"pattern\":\"a**\"}", "repeated" },
        { "{\"type\":\"string\",\"pattern\":\"\\\\\"}", "backslash" },
        { "{\"type\":\"string\",\"pattern\":\"[]\"}", "empty" },
        { "{\"type\":\"string\",\"pattern\":1}", "pattern" },
        { "{\"type\":\"integer\",\"minimum\":5,\"maximum\":4}", "minimum" },
        { "{\"type\":\"integer\",\"minimum\":1e30}", "minimum" },
        { "{\"enum\":[]}", "enum" },
        { "{\"enum\":1}", "enum" },
        { "{\"type\":\"string\",\"enum\":[1,2]}", "no value of the wanted type" },
        { "{\"enum\":[\"a\"],\"minLength\":3}", "enum" },
        { "{\"anyOf\":[]}", "anyOf" },
        { "{\"allOf\":[{\"properties\":{\"a\":{\"type\":\"null\"}},\"required\":[\"a\"]},"
          "{\"properties\":{\"a\":{\"type\":\"string\"}}}]}",
          "#/properties/a of the JSON schema: type" },
        { "{\"type\":\"array\",\"items\":{\"type\":\"string\"},\"uniqueItems\":true}",
          "uniqueItems" },
        { "{\"type\":\"array\",\"contains\":{}}", "contains" },
        { "{\"type\":\"object\",\"unevaluatedProperties\":{}}", "unevaluatedProperties" },
        { "{\"not\":{\"type\":\"array\",\"uniqueItems\":true},\"type\":\"array\"}",
          "nothing is valid" },
        { "{\"not\":{\"format\":\"date\"}}", "not" },
        { "{\"oneOf\":[{\"type\":\"integer\"},{\"type\":\"number\"}]}", "nothing is valid" },
        { "{\"type\":\"integer\",\"multipleOf\":1001}", "multipleOf" },
        { "{\"type\":\"integer\",\"multipleOf\":0}", "multipleOf" },
        { "{\"type\":\"object\",\"minProperties\":3}", "minProperties" },
        { "{\"type\":\"object\",\"properties\":{\"a\":{\"$ref\":\"#/$defs/x\"}},"
          "\"required\":[\"a\"],\"$defs\":{\"x\":{\"type\":\"string\",\"enum\":[1]}}}",
          "#/properties/a" },
        { "{\"$ref\":\"other.json\"}", "$ref" },
        { "{\"$ref\":\"#/nothing\"}", "$ref" },
        { "{\"$ref\":\"http://x/y#/$defs/a\",\"$defs\":{\"a\":{\"const\":1}}}", "$ref" },
        { "{\"$ref\":\"#/$defs/a\",\"$defs\":{\"b\":{\"const\":2},\"a\":{\"$id\":\"http://x/z\","
          "\"allOf\":[{\"$ref\":\"#/$defs/b\"}]}}}",
          "$ref" },
        { "{\"$ref\":\"#\"}", "itself" },
        { "{\"$ref\":\"#/$defs/a\",\"$defs\":{\"a\":{\"$ref\":\"#/$defs/b\"},\"b\":{\"$ref\":\"#/"
          "$defs/a\"}}}",
          "itself" },
        { "{\"properties\":{\"a\":1}}", "#/properties/a" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct nk_buf buf = NK_BUF_INIT(1 << 20);
        struct nk_error err = { 0 };
        json_t *s = json_loads(bad[i].schema, JSON_DECODE_ANY, NULL);

        assert_non_null(s);
        nk_buf_adds(&buf, "before", NULL);
        if (nk_json_schema_to_grammar(s, NULL, &buf, &err) != NK_E_INVALID)
            fail_msg("%s was taken\n%s", bad[i].schema, nk_buf_str(&buf));
        assert_string_equal(err.reason, "unsupported_schema");
        if (!strstr(err.msg, bad[i].named))
            fail_msg("%s: \"%s\" does not name %s", bad[i].schema, err.msg, bad[i].named);
        assert_string_equal(nk_buf_str(&buf), "before");
        json_decref(s);
        nk_buf_release(&buf);
    }
}

static void test_json_schema__size_and_depth_are_bounded(void **state)
{
    struct nk_buf buf = NK_BUF_INIT(65536);
    struct nk_error err = { 0 };
    json_t *deep = json_pack("{s:s}", "type", "null"), *wide = json_pack("{s:{}}", "properties");

    (void)state;
    for (int i = 0; i < 200; i++)
        deep = json_pack("{s:s, s:o}", "type", "array", "items", deep);
    assert_int_equal(nk_json_schema_to_grammar(deep, NULL, &buf, &err), NK_E_EXHAUSTED);
    assert_string_equal(err.reason, "too_large");
    for (int i = 0; i < 5000; i++) {
        char key[16];

        snprintf(key, sizeof key, "k%d", i);
        json_object_set_new(json_object_get(wide, "properties"), key,
                            json_pack("{s:s}", "type", "null"));
    }
    assert_int_equal(nk_json_schema_to_grammar(wide, NULL, &buf, &err), NK_E_EXHAUSTED);
    assert_string_equal(err.reason, "too_large");
    assert_int_equal(buf.size, 0);
    json_decref(deep);
    json_decref(wide);
    nk_buf_release(&buf);
}

/* ---- work ---- */

/* Takes s. The steps of its conversion; -1: more than the ceiling, which is what err says then. */
static int64_t work_of(json_t *s)
{
    struct nk_buf buf = NK_BUF_INIT(1 << 20);
    struct nk_work work = NK_WORK_INIT(NULL);
    struct nk_error err = { 0 };
    int rc = nk_json_schema_to_grammar(s, &work, &buf, &err);

    if (rc == NK_E_INVALID && !strcmp(err.reason, "too_much_work")) {
        assert_non_null(strstr(err.msg, "the JSON schema"));
        assert_non_null(strstr(err.msg, "16000000"));
        assert_int_equal(buf.size, 0);
        work.n_steps = -1;
    } else if (rc && strcmp(err.reason, "too_large")) {
        fail_msg("%s", err.msg);
    }
    nk_buf_release(&buf);
    json_decref(s);
    return work.n_steps;
}

/* allOf joins a chain of n definitions, each of which names the next one twice. */
static json_t *doubling(int n)
{
    json_t *defs = json_object();
    char name[16], ref[32];

    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "a%d", i);
        snprintf(ref, sizeof ref, "#/$defs/a%d", i + 1);
        json_object_set_new(defs, name,
                            json_pack("{s:[{s:s}, {s:s}]}", "allOf", "$ref", ref, "$ref", ref));
    }
    snprintf(name, sizeof name, "a%d", n);
    json_object_set_new(defs, name,
                        json_pack("{s:s, s:{s:{}}}", "type", "object", "properties", "a"));
    return json_pack("{s:o, s:s}", "$defs", defs, "$ref", "#/$defs/a0");
}

/* One object with n optional properties, of which the last is required again and again. */
static json_t *required_often(int n_properties, int n_required)
{
    json_t *properties = json_object(), *required = json_array();
    char name[16];

    for (int i = 0; i < n_properties; i++) {
        snprintf(name, sizeof name, "p%d", i);
        json_object_set_new(properties, name, json_pack("{s:s}", "type", "null"));
    }
    for (int i = 0; i < n_required; i++)
        json_array_append_new(required, json_string("p0"));
    return json_pack("{s:s, s:o, s:o}", "type", "object", "properties", properties, "required",
                     required);
}

/* allOf of n references to one object whose property is a constant of that size. */
static json_t *compared_often(int n_refs, int size)
{
    json_t *all = json_array(), *big = json_array();

    for (int i = 0; i < size; i++)
        json_array_append_new(big, json_integer(i));
    for (int i = 0; i < n_refs; i++)
        json_array_append_new(all, json_pack("{s:s}", "$ref", "#/$defs/a"));
    return json_pack("{s:{s:{s:{s:{s:o}}}}, s:o}", "$defs", "a", "properties", "x", "const", big,
                     "allOf", all);
}

/* A list of types, asked about each of as many values. */
static json_t *types_and_values(int n)
{
    json_t *types = json_array(), *values = json_array();

    for (int i = 0; i < n; i++) {
        json_array_append_new(types, json_string("null"));
        json_array_append_new(values, json_integer(i));
    }
    json_array_append_new(values, json_null());
    return json_pack("{s:o, s:o}", "type", types, "enum", values);
}

/* A string whose pattern is n times that. */
static json_t *long_pattern(const char *before, const char *unit, int n, const char *after)
{
    struct nk_buf text = NK_BUF_INIT(16 << 20);
    json_t *s;

    nk_buf_adds(&text, before, NULL);
    for (int i = 0; i < n; i++)
        nk_buf_adds(&text, unit, NULL);
    nk_buf_adds(&text, after, NULL);
    s = json_pack("{s:s, s:s}", "type", "string", "pattern", nk_buf_str(&text));
    nk_buf_release(&text);
    return s;
}

/* Its length was asked for at each of its characters: this took hours. */
static void test_json_schema__a_long_pattern_is_looked_at_once(void **state)
{
    struct nk_buf buf = NK_BUF_INIT(1 << 20);
    struct nk_error err = { 0 };
    json_t *s = long_pattern("[", "a", 4000000, "]");

    (void)state;
    assert_int_equal(nk_json_schema_to_grammar(s, NULL, &buf, &err), NK_E_INVALID);
    assert_non_null(strstr(err.msg, "too large"));
    json_decref(s);
    nk_buf_release(&buf);
    assert_true(work_of(long_pattern("", "a", 100, "")) < 100 * 150);
    assert_true(work_of(long_pattern("", "a", 4000000, "")) >
                0); /* until its grammar is too large */
}

/* Alternatives of n parts with two choices each, none of which rules another out. */
static json_t *choices(int n)
{
    json_t *all = json_array();

    for (int i = 0; i < n; i++) {
        char a[16], b[16];

        snprintf(a, sizeof a, "a%d", i);
        snprintf(b, sizeof b, "b%d", i);
        json_array_append_new(
            all, json_pack("{s:[{s:[s]}, {s:[s]}]}", "anyOf", "required", a, "required", b));
    }
    return json_pack("{s:s, s:o}", "type", "object", "allOf", all);
}

/* Each definition is looked at once, however often it is named. */
static void test_json_schema__what_is_named_again_is_no_more_work(void **state)
{
    (void)state;
    for (int n = 8; n <= 32; n *= 2)
        assert_in_range(work_of(doubling(n)), 1, 200 * n);
    assert_in_range(work_of(required_often(1000, 100000)), 1, 2000000);
    assert_in_range(work_of(compared_often(1000, 1000)), 1, 200000);
}

static void test_json_schema__work_that_multiplies_ends_at_the_ceiling(void **state)
{
    (void)state;
    assert_true(work_of(choices(6)) > 64 * 6);         /* it is counted */
    assert_in_range(work_of(choices(40)), 1, 2000000); /* until there are too many rules */
    assert_int_equal(work_of(types_and_values(20000)), -1);
}

static void test_json_schema__names_may_be_long(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);
    char name[201], schema[400], text[300], *grammar;

    (void)state;
    memset(name, 'n', 200);
    name[200] = '\0';
    snprintf(schema, sizeof schema,
             "{\"properties\":{\"%s\":{\"type\":\"null\"}},\"additionalProperties\":{\"const\":1}}",
             name);
    grammar = grammar_of(schema);
    snprintf(text, sizeof text, "{\"%s\":null}", name);
    assert_true(takes(v, grammar, text));
    snprintf(text, sizeof text, "{\"%s\":1}", name);
    assert_false(takes(v, grammar, text));
    snprintf(text, sizeof text, "{\"%s\":1}", name + 1);
    assert_true(takes(v, grammar, text));
    free(grammar);
    nk_vocab_close(v);
}

/* A grammar has a largest size, and a schema has several such strings. */
static void test_json_schema__joined_limits_make_small_grammars(void **state)
{
    static const char *const schemas[] = {
        "{\"type\":\"string\",\"format\":\"email\",\"pattern\":\"^[^@]+@[^@]+[.]com$\"}",
        "{\"type\":\"string\",\"format\":\"uri\",\"minLength\":1,\"maxLength\":2048}",
        "{\"type\":\"string\",\"format\":\"date-time\",\"pattern\":\"Z$\"}",
        "{\"type\":\"string\",\"pattern\":\"^[a-z][a-z0-9_]*$\",\"maxLength\":63}",
        "{\"type\":\"integer\",\"multipleOf\":5,\"minimum\":0}",
    };

    (void)state;
    for (size_t i = 0; i < sizeof schemas / sizeof schemas[0]; i++) {
        char *grammar = grammar_of(schemas[i]);

        if (strlen(grammar) > 8000)
            fail_msg("%s: %zu bytes", schemas[i], strlen(grammar));
        free(grammar);
    }
}

/* The oracle: a schema's work is a few steps for each of its bytes. */
static void test_json_schema__ordinary_work_grows_as_the_schema_does(void **state)
{
    (void)state;
    for (int n = 10; n <= 1000; n *= 10) {
        json_t *s = required_often(n, 1);
        char *text = json_dumps(s, JSON_COMPACT);
        int64_t n_steps = work_of(s);

        if (n_steps < 0 || n_steps > 8 * (int64_t)strlen(text))
            fail_msg("%d properties: %lld steps for %zu bytes", n, (long long)n_steps,
                     strlen(text));
        free(text);
    }
}

static void test_json_schema__ends_when_nobody_waits_for_it(void **state)
{
    atomic_bool cancelled;
    struct nk_work work = NK_WORK_INIT(&cancelled);
    struct nk_buf buf = NK_BUF_INIT(1 << 20);
    struct nk_error err = { 0 };
    json_t *s = choices(40);

    (void)state;
    atomic_init(&cancelled, true);
    assert_int_equal(nk_json_schema_to_grammar(s, &work, &buf, &err), NK_E_CANCELLED);
    assert_int_equal(buf.size, 0);
    json_decref(s);
    nk_buf_release(&buf);
}

/* What comes out when tokens are drawn at random from what the grammar allows, is JSON of the
 * schema. */
static json_t *draw(const nk_vocab *v, const char *grammar, struct test_random *r, char *text,
                    size_t size)
{
    nk_grammar *g;
    size_t n = 0;

    assert_int_equal(nk_grammar_new(&g, nk_vocab_llama(v), grammar, NULL), 0);
    for (;;) {
        int32_t allowed[2048];
        const uint8_t *mask;
        struct nk_buf piece = NK_BUF_INIT(200);
        int n_allowed = 0;
        int32_t id;

        assert_int_equal(nk_grammar_mask(g, &mask, NULL), 0);
        if (mask[nk_vocab_eos(v)] && (test_below(r, 4) == 0 || n > 200))
            break;
        for (int32_t i = 0; i < nk_vocab_size(v); i++)
            if (mask[i] && !nk_vocab_is_eog(v, i) &&
                (n < 300 || strchr("\"]}0123456789", i) || i > 127))
                allowed[n_allowed++] = i;
        if (!n_allowed && mask[nk_vocab_eos(v)])
            break;
        if (!n_allowed) /* past the preferred length: whatever is allowed */
            for (int32_t i = 0; i < nk_vocab_size(v); i++)
                if (mask[i] && !nk_vocab_is_eog(v, i))
                    allowed[n_allowed++] = i;
        assert_true(n_allowed > 0);
        id = allowed[test_below(r, n_allowed)];
        assert_int_equal(nk_vocab_piece(v, id, false, &piece, NULL), 0);
        assert_true(n + piece.size < size);
        memcpy(text + n, piece.data, piece.size);
        n += piece.size;
        nk_buf_release(&piece);
        assert_int_equal(nk_grammar_accept(g, id, NULL), 0);
    }
    nk_grammar_free(g);
    text[n] = '\0';
    return json_loadb(text, n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
}

static void test_json_schema__random_texts_of_the_grammar_are_json(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);
    static char text[1 << 16];
    char *grammar = grammar_of(
        "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\",\"maxLength\":20},"
        "\"age\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":150},"
        "\"tags\":{\"type\":\"array\",\"items\":{\"enum\":[\"a\",\"b\"]},\"maxItems\":3}},"
        "\"required\":[\"name\",\"age\"]}");

    (void)state;
    for (uint64_t seed = 1; seed <= 30; seed++) {
        struct test_random r = { seed };
        json_t *value = draw(v, grammar, &r, text, sizeof text), *tags;

        if (!value)
            fail_msg("not JSON: %s", text);
        assert_true(json_is_string(json_object_get(value, "name")));
        assert_true(json_is_integer(json_object_get(value, "age")));
        assert_in_range(json_integer_value(json_object_get(value, "age")), 0, 150);
        assert_in_range(json_array_size(json_object_get(value, "tags")), 0, 3);
        tags = json_object_get(value, "tags");
        for (size_t i = 0; i < json_array_size(tags); i++) {
            const char *tag = json_string_value(json_array_get(tags, i));

            assert_true(!strcmp(tag, "a") || !strcmp(tag, "b"));
        }
        json_decref(value);
    }
    free(grammar);
    nk_vocab_close(v);
}

static void test_json_schema__json_object_is_any_object(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);

    (void)state;
    assert_true(takes(v, nk_json_object_grammar(), "{}"));
    assert_true(takes(v, nk_json_object_grammar(),
                      "{\"a\": [1, -2.5e3, \"x\\n\", {\"b\": null}], \"c\": false}"));
    assert_true(takes(v, nk_json_object_grammar(), "{\n  \"a\": 1\n}"));
    assert_false(takes(v, nk_json_object_grammar(), "[]"));
    assert_false(takes(v, nk_json_object_grammar(), "{\"a\": }"));
    assert_false(takes(v, nk_json_object_grammar(), "{\"a\": 1"));
    nk_vocab_close(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json_schema__grammar_takes_valid_texts_and_no_others),
        cmocka_unit_test(test_json_schema__ranges_are_exact_at_every_number),
        cmocka_unit_test(test_json_schema__what_is_not_understood_is_refused_by_name),
        cmocka_unit_test(test_json_schema__size_and_depth_are_bounded),
        cmocka_unit_test(test_json_schema__a_long_pattern_is_looked_at_once),
        cmocka_unit_test(test_json_schema__what_is_named_again_is_no_more_work),
        cmocka_unit_test(test_json_schema__work_that_multiplies_ends_at_the_ceiling),
        cmocka_unit_test(test_json_schema__names_may_be_long),
        cmocka_unit_test(test_json_schema__joined_limits_make_small_grammars),
        cmocka_unit_test(test_json_schema__ordinary_work_grows_as_the_schema_does),
        cmocka_unit_test(test_json_schema__ends_when_nobody_waits_for_it),
        cmocka_unit_test(test_json_schema__random_texts_of_the_grammar_are_json),
        cmocka_unit_test(test_json_schema__json_object_is_any_object),
    };

    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
