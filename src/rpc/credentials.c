/* TLS. gRPC takes PEM texts and finds out late, and with a line in a log, that they are no good:
 * here they are read with OpenSSL first, so that the error says which of them and why. */
#include "rpc/rpc_int.h"

#include <string.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

static int bad(struct nk_error *err, const char *what, const char *why)
{
    unsigned long e = ERR_peek_last_error();
    const char *reason = e ? ERR_reason_error_string(e) : NULL;
    int rc = nk_fail(err, NK_E_INVALID, "bad_credentials", "%s: %s%s%s", what, why,
                     reason ? ": " : "", reason ? reason : "");

    ERR_clear_error();
    return rc;
}

/* A certificate text holds at least one certificate; *first (may be NULL) is returned owned. */
static int check_certificates(const char *pem, const char *what, X509 **first, struct nk_error *err)
{
    BIO *bio = BIO_new_mem_buf(pem, -1);
    X509 *x = bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;

    BIO_free(bio);
    if (!x)
        return bad(err, what, "no PEM certificate can be read");
    if (first)
        *first = x;
    else
        X509_free(x);
    return 0;
}

static int no_password(char *buf, int size, int writing, void *user)
{
    (void)buf;
    (void)size;
    (void)writing;
    (void)user;
    return -1; /* never ask on the terminal */
}

static int check_pair(const struct nk_credentials *c, struct nk_error *err)
{
    X509 *x = NULL;
    EVP_PKEY *key = NULL;
    BIO *bio = NULL;
    int rc;

    ERR_clear_error();
    rc = check_certificates(c->certificate, "the certificate", &x, err);
    if (rc)
        goto out;
    bio = BIO_new_mem_buf(c->key, -1);
    key = bio ? PEM_read_bio_PrivateKey(bio, NULL, no_password, NULL) : NULL;
    if (!key)
        rc = bad(err, "the key", "no unencrypted PEM private key can be read");
    else if (X509_check_private_key(x, key) != 1)
        rc = bad(err, "the key", "it does not belong to the certificate");
out:
    BIO_free(bio);
    EVP_PKEY_free(key);
    X509_free(x);
    return rc;
}

/* ---- an identity folder: gRPC watches its files, and asks us who is let in ---- */

static int check_alone(const struct nk_credentials *c, struct nk_error *err)
{
    if (c->ca || c->certificate || c->key)
        return nk_fail(err, NK_E_INVALID, "bad_credentials",
                       "an identity folder and PEM texts were both given; one of them is right");
    return 0;
}

/* gRPC does not verify certificates itself (see identity.c); that whoever shows one has its key is
 * part of the handshake in any case. */
static grpc_tls_credentials_options *identity_options(struct nk__membership *m,
                                                      struct nk__verifier *verifier)
{
    grpc_tls_credentials_options *o = grpc_tls_credentials_options_create();

    grpc_tls_credentials_options_set_certificate_provider(o, m->provider);
    grpc_tls_credentials_options_watch_root_certs(o);
    grpc_tls_credentials_options_watch_identity_key_cert_pairs(o);
    grpc_tls_credentials_options_set_check_call_host(o, 0);
    nk__verifier_set(verifier, o);
    return o;
}

static int server_identity(grpc_server_credentials **out, struct nk__membership **membership,
                           nk_net *net, const struct nk_credentials *c, struct nk_error *err)
{
    grpc_tls_credentials_options *o;
    int rc = check_alone(c, err);

    if (!rc)
        rc = nk__membership_get(membership, net, c->identity, err);
    if (rc)
        return rc;
    o = identity_options(*membership, nk__verifier_new(*membership, NULL));
    grpc_tls_credentials_options_set_cert_request_type(
        o, GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_BUT_DONT_VERIFY);
    *out = grpc_tls_server_credentials_create(o);
    return 0;
}

static int channel_identity(grpc_channel_credentials **out, struct nk__membership **membership,
                            struct nk__verifier **verifier, nk_net *net, const char *address,
                            const struct nk_credentials *c, struct nk_error *err)
{
    grpc_tls_credentials_options *o;
    int rc = check_alone(c, err);

    if (!rc)
        rc = nk__membership_get(membership, net, c->identity, err);
    if (rc)
        return rc;
    *verifier = nk__verifier_new(*membership, address);
    o = identity_options(*membership, *verifier);
    grpc_tls_credentials_options_set_verify_server_cert(o, 0);
    *out = grpc_tls_credentials_create(o);
    return 0;
}

/* ---- what servers and channels ask for ---- */

int nk__server_credentials(grpc_server_credentials **out, struct nk__membership **membership,
                           nk_net *net, const struct nk_credentials *c, struct nk_error *err)
{
    grpc_ssl_pem_key_cert_pair pair = { c->key, c->certificate };
    int rc;

    *out = NULL;
    *membership = NULL;
    if (c->identity)
        return server_identity(out, membership, net, c, err);
    if (!c->ca && !c->certificate && !c->key) {
        *out = grpc_insecure_server_credentials_create();
        return 0;
    }
    if (!c->ca || !c->certificate || !c->key)
        return nk_fail(
            err, NK_E_INVALID, "bad_credentials",
            "a server needs all three: the CA to trust, its certificate and its key; %s is missing",
            !c->ca            ? "the CA"
            : !c->certificate ? "the certificate"
                              : "the key");
    rc = check_certificates(c->ca, "the CA", NULL, err);
    if (!rc)
        rc = check_pair(c, err);
    if (!rc)
        *out = grpc_ssl_server_credentials_create_ex(
            c->ca, &pair, 1, GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY, NULL);
    return rc;
}

int nk__channel_credentials(grpc_channel_credentials **out, struct nk__membership **membership,
                            struct nk__verifier **verifier, nk_net *net, const char *address,
                            const struct nk_credentials *c, struct nk_error *err)
{
    grpc_ssl_pem_key_cert_pair pair = { c->key, c->certificate };
    int rc;

    *out = NULL;
    *membership = NULL;
    *verifier = NULL;
    if (c->identity)
        return channel_identity(out, membership, verifier, net, address, c, err);
    if (!c->ca && !c->certificate && !c->key) {
        *out = grpc_insecure_credentials_create();
        return 0;
    }
    if (!c->ca || !c->certificate != !c->key)
        return nk_fail(err, NK_E_INVALID, "bad_credentials",
                       "a client needs the CA to trust, and a certificate together with its key; "
                       "%s is missing",
                       !c->ca            ? "the CA"
                       : !c->certificate ? "the certificate"
                                         : "the key");
    rc = check_certificates(c->ca, "the CA", NULL, err);
    if (!rc && c->key)
        rc = check_pair(c, err);
    if (!rc)
        *out = grpc_ssl_credentials_create_ex(c->ca, c->key ? &pair : NULL, NULL, NULL);
    return rc;
}
