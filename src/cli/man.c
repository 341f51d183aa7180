/* nakshatra(1). What the tables do not say (exit codes, environment, files) is written here. */
#include "cli/reference.h"

#include <string.h>

#include "cli/cli.h"

static const char head[] =
    ".SH NAME\n"
    "nakshatra \\- one large language model over many unequal machines\n"
    ".SH SYNOPSIS\n"
    ".B nakshatra\n"
    ".I COMMAND\n"
    ".RI [ options ]\n"
    ".br\n"
    ".B nakshatra help\n"
    ".RI [ COMMAND ]\n"
    ".br\n"
    ".B nakshatra \\-\\-version\n"
    ".SH DESCRIPTION\n"
    "Nakshatra runs one large language model over many unequal machines.\n"
    "Each machine holds a contiguous range of the model's layers, its\n"
    ".IR slice ,\n"
    "in a\n"
    ".I worker\n"
    "process. The engine under each worker is stock llama.cpp, and the tokens are exactly the "
    "whole\n"
    "model's.\n"
    ".PP\n"
    "On one machine\n"
    ".B nakshatra up\n"
    "does everything.\n"
    "On several,\n"
    ".B split\n"
    "cuts the model,\n"
    ".B worker\n"
    "serves a slice on each machine,\n"
    ".B check\n"
    "asks whether they fit together, and\n"
    ".B run\n"
    "and\n"
    ".B serve\n"
    "generate text: on the terminal, and over HTTP with the APIs of OpenAI and Ollama.\n"
    ".PP\n"
    "A long option may be cut short as far as it is unique, and its value may follow it as a word\n"
    "or after an equals sign. Every command knows\n"
    ".B \\-\\-help\n"
    "and\n"
    ".BR \\-h .\n"
    "A default stands in parentheses.\n"
    ".SH COMMANDS\n";

static const char tail[] =
    ".SH EXIT STATUS\n"
    ".TP\n"
    ".B 0\n"
    "It is done; the answer is yes.\n"
    ".TP\n"
    ".B 1\n"
    "It could not be done, or the answer is no: a request would not run\n"
    ".RB ( check ),\n"
    "the logits are not the same\n"
    ".RB ( verify ).\n"
    "Standard error says why.\n"
    ".TP\n"
    ".B 2\n"
    "The command line, or a file that it names, is unusable. Standard error says what would be "
    "right.\n"
    ".TP\n"
    ".BI 128+ N\n"
    "Signal\n"
    ".I N\n"
    "ended it: 130 after Ctrl\\-C, 143 after SIGTERM. Servers\n"
    ".RB ( worker ,\n"
    ".BR serve ,\n"
    ".B up\n"
    "without a prompt) end with 0 when the first such signal has let them finish what runs.\n"
    ".PP\n"
    "A command whose output nobody reads any more is ended by SIGPIPE, as filters are.\n"
    ".SH ENVIRONMENT\n"
    ".TP\n"
    ".B NK_LOG\n"
    "The log on standard error: a level (error, warn, info, debug, trace), or levels by "
    "component,\n"
    "such as\n"
    ".BR info,rpc=trace,llama=warn .\n"
    "By default info, and error for llama.cpp's own messages. At info and above it has no prompt "
    "and\n"
    "no generated text. The workers of\n"
    ".B up\n"
    "have warn, unless this is set.\n"
    ".TP\n"
    ".BR HF_TOKEN ,\\  HUGGING_FACE_HUB_TOKEN\n"
    "The token for models of the Hugging Face hub that are not for everybody. No other host gets "
    "it.\n"
    ".TP\n"
    ".B HF_ENDPOINT\n"
    "Another hub than https://huggingface.co.\n"
    ".TP\n"
    ".BR SSL_CERT_FILE ,\\  CURL_CA_BUNDLE ,\\  SSL_CERT_DIR\n"
    "Whom to trust when a model is downloaded. Proxies are libcurl's:\n"
    ".BR https_proxy ,\\  all_proxy ,\\  no_proxy .\n"
    ".TP\n"
    ".BR XDG_CACHE_HOME ,\\  HOME\n"
    "Where the cache is: see FILES.\n"
    ".TP\n"
    ".B XDG_STATE_HOME\n"
    "Where the history of conversations is, and a cluster's state: see FILES.\n"
    ".TP\n"
    ".B NAKSHATRA_TOKEN\n"
    "The token for\n"
    ".BR join ,\n"
    "where it is no argument.\n"
    ".TP\n"
    ".BR XDG_RUNTIME_DIR ,\\  TMPDIR\n"
    "Where\n"
    ".B up\n"
    "keeps the file of its cluster while it runs: the first that is a full path, else /tmp.\n"
    ".TP\n"
    ".B TERM\n"
    "No progress is drawn on a terminal that is\n"
    ".BR dumb .\n"
    ".TP\n"
    ".BR GOMP_SPINCOUNT ,\\  OMP_WAIT_POLICY\n"
    "How long the threads of a worker spin before they sleep (OpenMP's own). When neither is set, "
    "a\n"
    "worker sets the first to 20000 for itself.\n"
    ".TP\n"
    ".B GGML_BACKEND_PATH\n"
    "One more backend for ggml to load, ggml's own.\n"
    ".SH FILES\n"
    ".TP\n"
    ".I cluster.yaml\n"
    "The workers and their layers, for\n"
    ".BR check ,\n"
    ".BR run ,\n"
    ".B serve\n"
    "and\n"
    ".BR worker :\n"
    ".PP\n"
    ".in +14n\n"
    ".nf\n"
    ".ft CW\n"
    "model: { id: NAME, sha256: HASH, vocab: NAME.vocab.gguf }\n"
    "workers:\n"
    "  - { id: attic,  address: \"10.0.0.3:5530\", layers: 0\\-14 }\n"
    "  - { id: cellar, address: \"10.0.0.4:5530\", layers: 14\\-28 }\n"
    ".ft\n"
    ".fi\n"
    ".in\n"
    ".TP\n"
    ".I manifest.json\n"
    "What\n"
    ".B split\n"
    "wrote: the slices, their sizes and SHA\\-256, and the model's.\n"
    ".TP\n"
    ".I $XDG_CACHE_HOME/nakshatra/\n"
    "(else\n"
    ".IR ~/.cache/nakshatra/ )\n"
    "Slices and vocabularies that\n"
    ".B up\n"
    "and\n"
    ".B worker \\-\\-model\n"
    "cut, hashes of models, marks of slices that were found whole, and downloaded models\n"
    ".RI ( models/ ).\n"
    "All of it may be removed while nothing runs.\n"
    ".TP\n"
    ".I $XDG_STATE_HOME/nakshatra/chat_history\n"
    "(else\n"
    ".IR ~/.local/state/nakshatra/chat_history )\n"
    "What was asked in conversations\n"
    ".RB ( \\-\\-chat ),\n"
    "for you alone to read.\n"
    ".TP\n"
    ".I ~/.editrc\n"
    "How lines are edited in a conversation; see\n"
    ".BR editrc (5).\n"
    ".SH EXAMPLES\n"
    ".nf\n"
    ".ft CW\n"
    "nakshatra up MODEL.gguf \\-\\-prompt \\(aqIn the beginning\\(aq \\-n 64\n"
    "nakshatra up MODEL.gguf      # serves on http://127.0.0.1:8080\n"
    ".ft\n"
    ".fi\n"
    ".PP\n"
    "Over two machines:\n"
    ".PP\n"
    ".nf\n"
    ".ft CW\n"
    "nakshatra split MODEL.gguf \\-\\-layers 0\\-20,20\\-32 \\-\\-out slices/\n"
    "nakshatra worker \\-\\-slice slices/NAME.000\\-020.gguf \\-\\-listen 10.0.0.3:5530 ...\n"
    "nakshatra worker \\-\\-slice slices/NAME.020\\-032.gguf \\-\\-listen 10.0.0.4:5530 ...\n"
    "nakshatra check \\-\\-cluster cluster.yaml\n"
    "nakshatra serve \\-\\-cluster cluster.yaml\n"
    ".ft\n"
    ".fi\n";

/* Free text, escaped; at_begin: it begins a line. */
static void put_text(FILE *out, const char *text, bool at_begin)
{
    if (at_begin && (*text == '.' || *text == '\''))
        fputs("\\&", out);
    for (; *text; text++) {
        if (*text == '\\')
            fputs("\\e", out);
        else if (*text == '-')
            fputs("\\-", out);
        else
            fputc(*text, out);
    }
}

static void put_option(FILE *out, const struct nk_arg *a)
{
    char value[256];

    fputs(".TP\n", out);
    if (a->letter)
        fprintf(out, "\\fB\\-%c\\fR, ", a->letter);
    fputs("\\fB\\-\\-", out);
    put_text(out, a->name, false);
    fputs("\\fR", out);
    if (a->value_name) {
        fputs(" \\fI", out);
        put_text(out, a->value_name, false);
        fputs("\\fR", out);
    }
    fputc('\n', out);
    put_text(out, a->help, true);
    if (nk_arg_default(a, value, sizeof value)) {
        fputs(" (", out);
        put_text(out, value, false);
        fputs(")", out);
    }
    fputc('\n', out);
}

static void put_command(void *user, const char *name, const char *summary,
                        const struct nk_command *cmd)
{
    FILE *out = user;

    fprintf(out, ".SS %s\n\\fBnakshatra %s\\fR", name, name);
    put_text(out, cmd->usage + strlen(name), false); /* usage begins with the name */
    fputs("\n.PP\n", out);
    put_text(out, cmd->summary, true);
    fputc('\n', out);
    for (const struct nk_arg *a = cmd->args; a && a->name; a++)
        put_option(out, a);
    (void)summary;
}

void nk_reference_man(FILE *out)
{
    /* No date: the page of a version is the same whenever it is made. */
    fprintf(out, ".TH NAKSHATRA 1 \"\" \"nakshatra %s\" \"User Commands\"\n.nh\n.ad l\n%s",
            NK_VERSION, head);
    nk_cli_describe(put_command, out);
    fputs(tail, out);
}
