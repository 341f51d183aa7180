/* One tool call as a JSON object, read byte by byte: {"name": "f", "arguments": {...}}, members in
 * any order, "parameters" for "arguments", and other keys where a form has them. The arguments'
 * bytes go out as they come, once the name is known. Pure. */
#ifndef NK_GATEWAY_TOOL_CALL_H
#define NK_GATEWAY_TOOL_CALL_H

#include <stdbool.h>

#include "base/buf.h"
#include "gateway/output_sink.h"
#include "gateway/tool_form.h"

enum nk_tool_call_state {
    NK_TOOL_CALL_GOING, /* more bytes are needed */
    NK_TOOL_CALL_DONE,  /* the object ended with the last byte */
    NK_TOOL_CALL_BAD,   /* the last byte cannot be part of a call */
};

struct nk_tool_call {
    /* What is expected, or goes on. */
    enum { CALL_START, CALL_KEY, CALL_COLON, CALL_VALUE, CALL_IN_VALUE, CALL_NEXT } at;
    enum { VALUE_OTHER, VALUE_NAME, VALUE_ARGUMENTS } value; /* of the member that is read */
    int depth;                                               /* of brackets inside a value */
    bool in_string, escaped;
    bool named;     /* only the arguments are read: the name was there before */
    bool as_text;   /* the arguments are a string with JSON in it */
    bool announced; /* the sink knows of the call */
    bool has_arguments;
    struct nk_buf word; /* the key or the string that is read, with its quotes */
    struct nk_buf held; /* arguments that did not go out yet */
    char name[NK_TOOL_NAME_MAX + 1];
    const char *name_key, *args_key; /* further ones that are understood; or NULL */
    const char *const *names; /* NULL: any function's name will do; else it must be one of these */
    int n_names;
    nk_output_sink *sink;
    void *user;
};

void nk__tool_call_init(struct nk_tool_call *c, nk_output_sink *sink, void *user);
void nk__tool_call_release(struct nk_tool_call *c);
/* For formats where the name stands before the arguments' object. INVALID `bad_name`: empty or too
 * long. */
int nk__tool_call_named(struct nk_tool_call *c, const char *name, size_t size,
                        struct nk_error *err);
/* Takes one byte. *rc: an error of the sink or of memory. */
enum nk_tool_call_state nk__tool_call_byte(struct nk_tool_call *c, char byte, int *rc,
                                           struct nk_error *err);
/* Gives out the arguments that are held, if the call is announced. */
int nk__tool_call_flush(struct nk_tool_call *c, struct nk_error *err);

#endif
