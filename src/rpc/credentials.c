/* TLS. gRPC takes PEM texts and finds out late, and with a line in a log, that they are no good:
 * here they are read with OpenSSL first, so that the error says which of them and why. */
#include "rpc/rpc_int.h"

#include <string.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "rpc/certificate.h"

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
    key = bio ? PEM_read_bio_PrivateKey(bio, NULL, nk__no_password, NULL) : NULL;
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

/* gRPC does not verify certificates itself (see certificate.h); that whoever shows one has its key
 * is part of the handshake in any case. own: there is a certificate to show. */
static grpc_tls_credentials_options *options(grpc_tls_certificate_provider *provider, bool own,
                                             struct nk__verifier *verifier)
{
    grpc_tls_credentials_options *o = grpc_tls_credentials_options_create();

    grpc_tls_credentials_options_set_certificate_provider(o, provider);
    grpc_tls_credentials_options_watch_root_certs(o);
    if (own)
        grpc_tls_credentials_options_watch_identity_key_cert_pairs(o);
    grpc_tls_credentials_options_set_check_call_host(o, 0);
    nk__verifier_set(verifier, o);
    return o;
}

/* A client without a certificate gets as far as the verifier, which refuses it and can say so. */
static grpc_server_credentials *server_of(grpc_tls_certificate_provider *provider,
                                          struct nk__verifier *verifier)
{
    grpc_tls_credentials_options *o = options(provider, true, verifier);

    grpc_tls_credentials_options_set_cert_request_type(
        o, GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_BUT_DONT_VERIFY);
    return grpc_tls_server_credentials_create(o);
}

static grpc_channel_credentials *channel_of(grpc_tls_certificate_provider *provider, bool own,
                                            struct nk__verifier *verifier)
{
    grpc_tls_credentials_options *o = options(provider, own, verifier);

    grpc_tls_credentials_options_set_verify_server_cert(o, 0);
    return grpc_tls_credentials_create(o);
}

static int server_identity(grpc_server_credentials **out, struct nk__membership **membership,
                           nk_net *net, const struct nk_credentials *c, struct nk_error *err)
{
    int rc = check_alone(c, err);

    if (!rc)
        rc = nk__membership_get(membership, net, c->identity, err);
    if (!rc)
        *out = server_of((*membership)->provider, nk__verifier_new(*membership, NULL));
    return rc;
}

static int channel_identity(grpc_channel_credentials **out, struct nk__membership **membership,
                            struct nk__verifier **verifier, nk_net *net, const char *address,
                            const struct nk_credentials *c, struct nk_error *err)
{
    int rc = check_alone(c, err);

    if (!rc)
        rc = nk__membership_get(membership, net, c->identity, err);
    if (rc)
        return rc;
    *verifier = nk__verifier_new(*membership, address);
    *out = channel_of((*membership)->provider, true, *verifier);
    return 0;
}

/* ---- PEM texts: gRPC keeps them ---- */

static grpc_tls_certificate_provider *keep(const struct nk_credentials *c)
{
    grpc_tls_identity_pairs *pairs = NULL;

    if (c->key) {
        pairs = grpc_tls_identity_pairs_create();
        grpc_tls_identity_pairs_add_pair(pairs, c->key, c->certificate);
    }
    return grpc_tls_certificate_provider_static_data_create(c->ca, pairs);
}

/* ---- what servers and channels ask for ---- */

int nk__server_credentials(grpc_server_credentials **out, struct nk__membership **membership,
                           nk_net *net, const struct nk_credentials *c, struct nk_error *err)
{
    grpc_tls_certificate_provider *provider;
    struct nk__verifier *verifier;
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
        rc = nk__verifier_new_pem(&verifier, net, c->ca, c->certificate, NULL, err);
    if (rc)
        return rc;
    provider = keep(c);
    *out = server_of(provider, verifier);
    grpc_tls_certificate_provider_release(provider);
    return 0;
}

int nk__channel_credentials(grpc_channel_credentials **out, struct nk__membership **membership,
                            struct nk__verifier **verifier, nk_net *net, const char *address,
                            const struct nk_credentials *c, struct nk_error *err)
{
    grpc_tls_certificate_provider *provider;
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
        rc = nk__verifier_new_pem(verifier, net, c->ca, c->certificate, address, err);
    if (rc)
        return rc;
    provider = keep(c);
    *out = channel_of(provider, c->key != NULL, *verifier);
    grpc_tls_certificate_provider_release(provider);
    return 0;
}
