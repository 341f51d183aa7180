/* grpc.reflection.v1alpha.ServerReflection
 * (https://github.com/grpc/grpc/blob/master/doc/server-reflection.md), so that grpcurl and other
 * tools can look at a server. The descriptors are our own; the requests are a stranger's. */
#include "rpc/rpc_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "descriptor.pb-c.h"
#include "reflection.pb-c.h"

typedef Grpc__Reflection__V1alpha__ServerReflectionRequest Request;
typedef Grpc__Reflection__V1alpha__ServerReflectionResponse Response;

#define ASKED(what)  GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_##what
#define ANSWER(what) GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_##what

enum { REQUEST_BYTES_MAX = 64 * 1024 };

struct nk__reflection {
    Nakshatra__Descriptor__Files *set;   /* the files' bytes, as sent */
    Nakshatra__Descriptor__File **files; /* the same, as read */
    size_t n_files;
    char **services; /* the set's, fully qualified */
    size_t n_services;
};

int nk__reflection_new(struct nk__reflection **out, struct nk_bytes descriptors,
                       struct nk_error *err)
{
    struct nk__reflection *r = nk__alloc(1, sizeof *r);

    *out = NULL;
    r->set = nakshatra__descriptor__files__unpack(NULL, descriptors.size, descriptors.data);
    if (!r->set)
        goto bad;
    r->files = nk__alloc(r->set->n_file + 1, sizeof(Nakshatra__Descriptor__File *));
    for (size_t i = 0; i < r->set->n_file; i++) {
        r->files[i] =
            nakshatra__descriptor__file__unpack(NULL, r->set->file[i].len, r->set->file[i].data);
        if (!r->files[i])
            goto bad;
        r->n_files++;
        r->n_services += r->files[i]->n_service;
    }
    r->services = nk__alloc(r->n_services + 1, sizeof(char *));
    r->n_services = 0;
    for (size_t i = 0; i < r->n_files; i++)
        for (size_t j = 0; j < r->files[i]->n_service; j++) {
            const char *package = r->files[i]->package, *name = r->files[i]->service[j]->name;
            size_t size = strlen(package) + strlen(name) + 2;

            r->services[r->n_services] = nk__alloc(1, size);
            snprintf(r->services[r->n_services++], size, "%s%s%s", package, *package ? "." : "",
                     name);
        }
    *out = r;
    return 0;
bad:
    nk__reflection_free(r);
    return nk_fail(err, NK_E_INVALID, "bad_descriptors",
                   "%zu bytes of descriptors are no FileDescriptorSet", descriptors.size);
}

void nk__reflection_free(struct nk__reflection *r)
{
    if (!r)
        return;
    for (size_t i = 0; i < r->n_files; i++)
        nakshatra__descriptor__file__free_unpacked(r->files[i], NULL);
    if (r->services)
        for (size_t i = 0; i < r->n_services; i++)
            free(r->services[i]);
    free(r->services);
    free(r->files);
    if (r->set)
        nakshatra__descriptor__files__free_unpacked(r->set, NULL);
    free(r);
}

/* ---- finding ---- */

/* What follows "name." in symbol; symbol's end when they are equal; NULL when it is something
 * else. */
static const char *below(const char *symbol, const char *name)
{
    size_t n = strlen(name);

    if (strncmp(symbol, name, n))
        return NULL;
    if (symbol[n] == '.')
        return symbol + n + 1;
    return symbol[n] ? NULL : symbol + n;
}

static bool in_named(const char *symbol, Nakshatra__Descriptor__Named **items, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(symbol, items[i]->name))
            return true;
    return false;
}

static bool in_messages(const char *symbol, Nakshatra__Descriptor__Message **items, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const char *rest = below(symbol, items[i]->name);

        if (!rest)
            continue;
        if (!*rest || in_named(rest, items[i]->field, items[i]->n_field) ||
            in_named(rest, items[i]->enum_type, items[i]->n_enum_type) ||
            in_messages(rest, items[i]->nested_type, items[i]->n_nested_type))
            return true;
    }
    return false;
}

static bool in_services(const char *symbol, Nakshatra__Descriptor__Service **items, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const char *rest = below(symbol, items[i]->name);

        if (rest && (!*rest || in_named(rest, items[i]->method, items[i]->n_method)))
            return true;
    }
    return false;
}

/* The file that defines a fully qualified symbol; n_files when none does. */
static size_t file_with_symbol(const struct nk__reflection *r, const char *symbol)
{
    for (size_t i = 0; i < r->n_files; i++) {
        const Nakshatra__Descriptor__File *f = r->files[i];
        const char *rest = *f->package ? below(symbol, f->package) : symbol;

        if (rest && *rest &&
            (in_messages(rest, f->message_type, f->n_message_type) ||
             in_named(rest, f->enum_type, f->n_enum_type) ||
             in_services(rest, f->service, f->n_service)))
            return i;
    }
    return r->n_files;
}

static size_t file_with_name(const struct nk__reflection *r, const char *name)
{
    size_t i = 0;

    while (i < r->n_files && strcmp(r->files[i]->name, name))
        i++;
    return i;
}

/* Marks a file and all it imports. */
static void mark(const struct nk__reflection *r, size_t idx, bool *wanted)
{
    if (idx >= r->n_files || wanted[idx])
        return;
    wanted[idx] = true;
    for (size_t i = 0; i < r->files[idx]->n_dependency; i++)
        mark(r, file_with_name(r, r->files[idx]->dependency[i]), wanted);
}

/* ---- answering ---- */

static void send_response(nk_call *c, Request *request, Response *response)
{
    struct nk_error e;

    response->valid_host = request->host;
    response->original_request = request;
    if (nk_call_send_pb(c, &response->base, &e)) /* a client that asks and never reads */
        nk_call_finish(c, &e);
}

static void answer_error(nk_call *c, Request *request, int code, const char *text)
{
    Response response = GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_RESPONSE__INIT;
    Grpc__Reflection__V1alpha__ErrorResponse error =
        GRPC__REFLECTION__V1ALPHA__ERROR_RESPONSE__INIT;

    error.error_code = -code;
    error.error_message = (char *)text;
    response.message_response_case = ANSWER(ERROR_RESPONSE);
    response.error_response = &error;
    send_response(c, request, &response);
}

static void answer_file(nk_call *c, const struct nk__reflection *r, Request *request, size_t idx)
{
    Response response = GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_RESPONSE__INIT;
    Grpc__Reflection__V1alpha__FileDescriptorResponse files =
        GRPC__REFLECTION__V1ALPHA__FILE_DESCRIPTOR_RESPONSE__INIT;
    bool *wanted;

    if (idx >= r->n_files) {
        answer_error(c, request, NK_E_NOT_FOUND, "not found");
        return;
    }
    wanted = nk__alloc(r->n_files, sizeof *wanted);
    files.file_descriptor_proto = nk__alloc(r->n_files, sizeof *files.file_descriptor_proto);
    mark(r, idx, wanted);
    files.file_descriptor_proto[files.n_file_descriptor_proto++] = r->set->file[idx];
    for (size_t i = 0; i < r->n_files; i++)
        if (wanted[i] && i != idx)
            files.file_descriptor_proto[files.n_file_descriptor_proto++] = r->set->file[i];
    response.message_response_case = ANSWER(FILE_DESCRIPTOR_RESPONSE);
    response.file_descriptor_response = &files;
    send_response(c, request, &response);
    free(files.file_descriptor_proto);
    free(wanted);
}

/* The services that are described and served. */
static void answer_services(nk_call *c, const nk_server *s, Request *request)
{
    const struct nk__reflection *r = s->reflection;
    Response response = GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_RESPONSE__INIT;
    Grpc__Reflection__V1alpha__ListServiceResponse list =
        GRPC__REFLECTION__V1ALPHA__LIST_SERVICE_RESPONSE__INIT;
    Grpc__Reflection__V1alpha__ServiceResponse *items = nk__alloc(r->n_services + 1, sizeof *items);

    list.service = nk__alloc(r->n_services + 1, sizeof *list.service);
    for (size_t i = 0; i < r->n_services; i++) {
        if (!nk__server_has_service(s, r->services[i]))
            continue;
        grpc__reflection__v1alpha__service_response__init(&items[i]);
        items[i].name = r->services[i];
        list.service[list.n_service++] = &items[i];
    }
    response.message_response_case = ANSWER(LIST_SERVICES_RESPONSE);
    response.list_services_response = &list;
    send_response(c, request, &response);
    free(list.service);
    free(items);
}

static void on_message(nk_call *c, void *user, struct nk_bytes msg)
{
    nk_server *s = user;
    Request *request = NULL;

    if (msg.size <= REQUEST_BYTES_MAX)
        request =
            grpc__reflection__v1alpha__server_reflection_request__unpack(NULL, msg.size, msg.data);
    if (!request) {
        struct nk_error e = { 0 };

        nk_fail(&e, NK_E_INVALID, "bad_request", "%zu bytes that are no ServerReflectionRequest",
                msg.size);
        nk_call_finish(c, &e);
        return;
    }
    switch (request->message_request_case) {
    case ASKED(FILE_BY_FILENAME):
        answer_file(c, s->reflection, request,
                    file_with_name(s->reflection, request->file_by_filename));
        break;
    case ASKED(FILE_CONTAINING_SYMBOL):
        answer_file(c, s->reflection, request,
                    file_with_symbol(s->reflection, request->file_containing_symbol));
        break;
    case ASKED(LIST_SERVICES):
        answer_services(c, s, request);
        break;
    case ASKED(FILE_CONTAINING_EXTENSION):
    case ASKED(ALL_EXTENSION_NUMBERS_OF_TYPE):
        answer_error(c, request, NK_E_NOT_FOUND, "proto3 files have no extensions");
        break;
    default:
        answer_error(c, request, NK_E_INVALID, "the request asks for nothing that is known here");
    }
    grpc__reflection__v1alpha__server_reflection_request__free_unpacked(request, NULL);
}

static void on_half_closed(nk_call *c, void *user)
{
    (void)user;
    nk_call_finish(c, NULL);
}

static void open_reflection(nk_call *c, void *server)
{
    static const struct nk_call_handlers handlers = { .message = on_message,
                                                      .half_closed = on_half_closed };

    nk_call_accept(c, &handlers, server);
}

const struct nk_method nk__reflection_methods[] = {
    { "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", open_reflection, 0 },
};
const int nk__n_reflection_methods =
    sizeof nk__reflection_methods / sizeof nk__reflection_methods[0];
