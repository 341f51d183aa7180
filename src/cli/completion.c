/* What bash, zsh and fish complete by. The scripts stand alone: they do not run the program. */
#include "cli/reference.h"

#include <string.h>

#include "cli/cli.h"

/* ---- what follows an option ---- */

enum follows { NO_VALUE, ANYTHING, FILES, FOLDERS, WORDS };

static enum follows follows(const struct nk_arg *a)
{
    if (!a->value_name)
        return NO_VALUE;
    if (strstr(a->value_name, "FILE"))
        return FILES;
    if (strstr(a->value_name, "DIR"))
        return FOLDERS;
    return strchr(a->value_name, '|') ? WORDS : ANYTHING;
}

/* "f32|f16" as "f32 f16". */
static void put_words(FILE *out, const char *value_name)
{
    for (; *value_name; value_name++)
        fputc(*value_name == '|' ? ' ' : *value_name, out);
}

/* Text within single quotes, a backslash before each of `special`. */
static void put_quoted(FILE *out, const char *text, const char *special, const char *quote)
{
    for (; *text; text++) {
        if (*text == '\'')
            fputs(quote, out);
        else if (strchr(special, *text))
            fprintf(out, "\\%c", *text);
        else
            fputc(*text, out);
    }
}

static bool takes_command(const char *name)
{
    return !strcmp(name, "help");
}

static void put_name(void *user, const char *name, const char *summary,
                     const struct nk_command *cmd)
{
    (void)summary, (void)cmd;
    fprintf(user, "%s ", name);
}

/* ---- bash ---- */

/* "-c --cluster " for every option that this follows. */
static void put_options(FILE *out, const struct nk_command *cmd, enum follows what)
{
    for (const struct nk_arg *a = cmd->args; a->name; a++) {
        if (follows(a) != what)
            continue;
        if (a->letter)
            fprintf(out, "-%c ", a->letter);
        fprintf(out, "--%s ", a->name);
    }
}

static void put_bash(void *user, const char *name, const char *summary,
                     const struct nk_command *cmd)
{
    FILE *out = user;

    (void)summary;
    fprintf(out, "    %s)\n        options='--help ", name);
    for (const struct nk_arg *a = cmd->args; a->name; a++)
        fprintf(out, "--%s ", a->name);
    fputs("'\n        files=' ", out);
    put_options(out, cmd, FILES);
    fputs("'\n        folders=' ", out);
    put_options(out, cmd, FOLDERS);
    fputs("'\n        values=' ", out);
    put_options(out, cmd, ANYTHING);
    fputs("'\n", out);
    if (takes_command(name))
        fputs("        words=$commands\n", out);
    else if (cmd->n_max)
        fputs("        arguments=files\n", out);
    for (const struct nk_arg *a = cmd->args; a->name; a++)
        if (follows(a) == WORDS) {
            fprintf(out, "        [[ $previous == @(-%c|--%s) ]] && choices='",
                    a->letter ? a->letter : '-', a->name);
            put_words(out, a->value_name);
            fputs("'\n", out);
        }
    fputs("        ;;\n", out);
}

void nk_reference_bash(FILE *out)
{
    fputs("# bash completion for nakshatra; made by `nakshatra help --bash`.\n"
          "_nakshatra()\n"
          "{\n"
          "    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}\n"
          "    local options= files= folders= values= words= choices= arguments= IFS=$' \\t\\n'\n"
          "    local commands='",
          out);
    nk_cli_describe(put_name, out);
    fputs("'\n"
          "\n"
          "    COMPREPLY=()\n"
          "    if ((COMP_CWORD == 1)); then\n"
          "        COMPREPLY=($(compgen -W \"$commands --help --version\" -- \"$current\"))\n"
          "        return\n"
          "    fi\n"
          "    # --option=value is three words here.\n"
          "    if [[ $current == = ]]; then\n"
          "        current=\n"
          "    elif [[ $previous == = ]]; then\n"
          "        previous=${COMP_WORDS[COMP_CWORD - 2]}\n"
          "    fi\n"
          "    case ${COMP_WORDS[1]} in\n",
          out);
    nk_cli_describe(put_bash, out);
    fputs("    esac\n"
          "    if [[ $files == *\" $previous \"* ]]; then\n"
          "        arguments=files\n"
          "    elif [[ $folders == *\" $previous \"* ]]; then\n"
          "        arguments=folders\n"
          "    elif [[ $values == *\" $previous \"* ]]; then\n"
          "        return\n"
          "    elif [[ $choices ]]; then\n"
          "        words=$choices arguments=\n"
          "    elif [[ $current == -* ]]; then\n"
          "        words=$options arguments=\n"
          "    fi\n"
          "    if [[ $arguments ]]; then\n"
          "        compopt -o filenames 2>/dev/null\n"
          "        IFS=$'\\n'\n"
          "        [[ $arguments == files ]] && COMPREPLY=($(compgen -f -- \"$current\"))\n"
          "        [[ $arguments == folders ]] && COMPREPLY=($(compgen -d -- \"$current\"))\n"
          "    else\n"
          "        COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
          "    fi\n"
          "}\n"
          "complete -F _nakshatra nakshatra\n",
          out);
}

/* ---- zsh ---- */

static void put_zsh_name(void *user, const char *name, const char *summary,
                         const struct nk_command *cmd)
{
    FILE *out = user;

    (void)cmd;
    fprintf(out, "        '%s:", name);
    put_quoted(out, summary, "\\:", "'\\''");
    fputs("'\n", out);
}

static void put_zsh(void *user, const char *name, const char *summary, const struct nk_command *cmd)
{
    FILE *out = user;

    (void)summary;
    fprintf(out, "    %s)\n        _arguments \\\n", name);
    for (const struct nk_arg *a = cmd->args; a->name; a++) {
        const char *sign = a->value_name ? "=" : "";

        if (a->letter && a->kind == NK_ARG_LIST)
            fprintf(out, "            '*'{-%c,--%s%s}'[", a->letter, a->name, sign);
        else if (a->letter)
            fprintf(out, "            '(-%c --%s)'{-%c,--%s%s}'[", a->letter, a->name, a->letter,
                    a->name, sign);
        else
            fprintf(out, "            '%s--%s%s[", a->kind == NK_ARG_LIST ? "*" : "", a->name,
                    sign);
        put_quoted(out, a->help, "\\[]:", "'\\''");
        fputs("]", out);
        if (a->value_name) {
            fputs(":", out);
            put_quoted(out, a->value_name, "\\:", "'\\''");
            fputs(":", out);
        }
        if (follows(a) == ANYTHING)
            fputs(" ", out);
        else if (follows(a) == FILES)
            fputs("_files", out);
        else if (follows(a) == FOLDERS)
            fputs("_files -/", out);
        else if (follows(a) == WORDS) {
            fputs("(", out);
            put_words(out, a->value_name);
            fputs(")", out);
        }
        fputs("' \\\n", out);
    }
    if (takes_command(name)) {
        fputs("            '1:command:(", out);
        nk_cli_describe(put_name, out);
        fputs(")' \\\n", out);
    } else if (cmd->n_max) {
        fputs("            '*:file:_files' \\\n", out);
    }
    fputs("            '(- *)'{-h,--help}'[this command'\\''s help]'\n        ;;\n", out);
}

void nk_reference_zsh(FILE *out)
{
    fputs("#compdef nakshatra\n"
          "# Made by `nakshatra help --zsh`.\n"
          "_nakshatra()\n"
          "{\n"
          "    local -a commands\n"
          "    commands=(\n",
          out);
    nk_cli_describe(put_zsh_name, out);
    fputs("    )\n"
          "    if ((CURRENT == 2)); then\n"
          "        _describe command commands\n"
          "        return\n"
          "    fi\n"
          "    shift words\n"
          "    ((CURRENT--))\n"
          "    case $words[1] in\n",
          out);
    nk_cli_describe(put_zsh, out);
    /* The file is either autoloaded as the function or read by source. */
    fputs("    esac\n"
          "}\n"
          "if [ \"$funcstack[1]\" = _nakshatra ]; then\n"
          "    _nakshatra \"$@\"\n"
          "else\n"
          "    compdef _nakshatra nakshatra\n"
          "fi\n",
          out);
}

/* ---- fish ---- */

static void put_fish(void *user, const char *name, const char *summary,
                     const struct nk_command *cmd)
{
    FILE *out = user;

    fprintf(out, "complete -c nakshatra -n __fish_use_subcommand -a %s -d '", name);
    put_quoted(out, summary, "\\", "\\'");
    fputs("'\n", out);
    for (const struct nk_arg *a = cmd->args; a->name; a++) {
        fprintf(out, "complete -c nakshatra -n '__fish_seen_subcommand_from %s'", name);
        if (a->letter)
            fprintf(out, " -s %c", a->letter);
        fprintf(out, " -l %s", a->name);
        if (follows(a) == ANYTHING)
            fputs(" -x", out);
        else if (follows(a) == FILES)
            fputs(" -r -F", out);
        else if (follows(a) == FOLDERS)
            fputs(" -x -a '(__fish_complete_directories)'", out);
        else if (follows(a) == WORDS) {
            fputs(" -x -a '", out);
            put_words(out, a->value_name);
            fputs("'", out);
        }
        fputs(" -d '", out);
        put_quoted(out, a->help, "\\", "\\'");
        fputs("'\n", out);
    }
    if (takes_command(name)) {
        fprintf(out, "complete -c nakshatra -n '__fish_seen_subcommand_from %s' -a '", name);
        nk_cli_describe(put_name, out);
        fputs("'\n", out);
    } else if (cmd->n_max) {
        fprintf(out, "complete -c nakshatra -n '__fish_seen_subcommand_from %s' -F\n", name);
    }
}

void nk_reference_fish(FILE *out)
{
    fputs("# fish completion for nakshatra; made by `nakshatra help --fish`.\n"
          "complete -c nakshatra -f\n"
          "complete -c nakshatra -n __fish_use_subcommand -l version -d 'which version this is'\n"
          "complete -c nakshatra -s h -l help -d 'help'\n",
          out);
    nk_cli_describe(put_fish, out);
}
