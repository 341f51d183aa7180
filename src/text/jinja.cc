/* minja renders; this file decides what goes in, and keeps it within bounds.
 *
 * minja looks every name that a template uses up through a chain of contexts. The one at the end of
 * that chain is ours (Root): it counts the look-ups, measures how deep the stack has grown, and has
 * a range() with a limit. That is where an endless recursion of macros or a loop over ranges of
 * ranges ends. Output goes through a stream buffer with a ceiling. Not bounded: the memory of
 * strings and lists that a template builds by itself (s * 1000000000), a loop whose body uses no
 * name but its own variables, a division by zero, how deep expressions are nested. Therefore a
 * server renders in a process of its own (text/template.h).
 *
 * minja ties a macro to the context that holds it, in a ring of shared pointers: Root is emptied
 * after each render to break it. */
#include "text/jinja.h"

#include <ctime>
#include <cstdint>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <new>
#include <sstream>
#include <streambuf>
#include <string>
#include <utility>
#include <vector>

#include <minja/minja.hpp>

extern "C" {
#include "base/utf8.h"
}

namespace
{

using Json = nlohmann::ordered_json;

/* Look-ups and writes of one render (about a second), and of the small examples that find_caps()
 * renders. */
constexpr int64_t steps_max = 1000000;
constexpr int64_t example_steps_max = 10000;
constexpr int64_t range_max = 100000;         /* elements of one range() */
constexpr size_t stack_bytes_max = 512 << 10; /* of one render, below nk_jinja_render */
constexpr int keys_max = 512; /* of one JSON object: minja's look-up among keys is linear */

/* Why a render was ended by us: minja wraps exceptions, and only their text survives. */
struct Limits {
    int64_t n_steps_left = steps_max;
    uintptr_t stack_base = 0;
    bool out_of_room = false;

    void step()
    {
        char here;
        const uintptr_t at = reinterpret_cast<uintptr_t>(&here);

        if (--n_steps_left < 0)
            throw std::runtime_error("the template runs for too many steps");
        if ((at > stack_base ? at - stack_base : stack_base - at) > stack_bytes_max)
            throw std::runtime_error("the template recurses too deeply");
    }
};

/* The last context of the chain but for minja's own functions. */
class Root : public minja::Context
{
    Limits &limits_;

  public:
    Root(const std::shared_ptr<minja::Context> &parent, Limits &limits)
        : minja::Context(minja::Value::object(), parent), limits_(limits)
    {
    }
    bool contains(const minja::Value &key) override
    {
        limits_.step();
        return minja::Context::contains(key);
    }
    void clear()
    {
        values_ = minja::Value::object();
    }
};

/* Empties the root however the render ends. */
struct Clearing {
    std::shared_ptr<Root> root;
    ~Clearing()
    {
        root->clear();
    }
};

/* A stream's end in an nk_buf. */
class Sink : public std::streambuf
{
    nk_buf *out_;
    Limits &limits_;

    void put(const char *text, size_t size)
    {
        limits_.step();
        if (nk_buf_add(out_, text, size, nullptr)) {
            limits_.out_of_room = true;
            throw std::runtime_error("the output is too large");
        }
    }

  protected:
    std::streamsize xsputn(const char *text, std::streamsize n) override
    {
        put(text, static_cast<size_t>(n));
        return n;
    }
    int_type overflow(int_type c) override
    {
        if (!traits_type::eq_int_type(c, traits_type::eof())) {
            const char byte = traits_type::to_char_type(c);
            put(&byte, 1);
        }
        return traits_type::not_eof(c);
    }

  public:
    Sink(nk_buf *out, Limits &limits) : out_(out), limits_(limits)
    {
    }
};

/* Python's range(), with a limit; each number is a step. */
minja::Value make_range(Limits &limits, minja::ArgumentsValue &args)
{
    static const char *const names[] = { "start", "stop", "step" };
    int64_t v[3] = { 0, 0, 1 };
    auto list = minja::Value::array();
    int64_t n = 0;

    if (args.args.size() > 3 || args.args.size() + args.kwargs.size() == 0)
        throw std::runtime_error("range() takes one to three numbers");
    if (args.args.size() == 1)
        v[1] = args.args[0].get<int64_t>();
    else
        for (size_t i = 0; i < args.args.size(); i++)
            v[i] = args.args[i].get<int64_t>();
    for (const auto &named : args.kwargs) {
        int i = 0;

        while (i < 3 && named.first != names[i] && !(i == 1 && named.first == "end"))
            i++;
        if (i == 3)
            throw std::runtime_error("range() has no argument " + named.first);
        v[i] = named.second.get<int64_t>();
    }
    if (v[2] == 0)
        throw std::runtime_error("range() with a step of 0");
    for (int64_t i = v[0]; v[2] > 0 ? i < v[1] : i > v[1];) {
        if (++n > range_max)
            throw std::runtime_error("range() of more than " + std::to_string(range_max) +
                                     " numbers");
        limits.step();
        list.push_back(minja::Value(i));
        if (__builtin_add_overflow(i, v[2], &i))
            break;
    }
    return list;
}

/* Depth and width, before anything recurses over the text or searches it. */
const char *too_complex(const char *text)
{
    int n_keys[NK_JINJA_DEPTH_MAX + 1] = { 0 };
    int depth = 0;
    bool in_string = false;

    for (const char *p = text; *p; p++) {
        if (in_string) {
            if (*p == '\\' && p[1])
                p++;
            else if (*p == '"')
                in_string = false;
        } else if (*p == '"') {
            in_string = true;
        } else if (*p == '[' || *p == '{') {
            if (++depth > NK_JINJA_DEPTH_MAX)
                return "nested too deeply";
            n_keys[depth] = 0;
        } else if (*p == ']' || *p == '}') {
            depth -= depth > 0;
        } else if (*p == ':' && ++n_keys[depth] > keys_max) {
            return "an object with too many keys";
        }
    }
    return nullptr;
}

/* As Python's json.dumps writes it, for that is what the templates' models were trained on.
 * indent < 0: on one line. */
struct JsonStyle {
    int indent = -1;
    std::string comma = ", ", colon = ": ";
    bool sorted = false;
};

void write_json(std::string &out, const Json &v, const JsonStyle &style, int level)
{
    const auto new_line = [&](int at) {
        if (style.indent >= 0)
            out.append("\n").append(static_cast<size_t>(at) * static_cast<size_t>(style.indent),
                                    ' ');
    };
    bool first = true;

    if (!v.is_structured() || v.empty()) {
        out += v.dump();
        return;
    }
    out += v.is_object() ? '{' : '[';
    if (v.is_object() && style.sorted) {
        std::map<std::string, const Json *> members;

        for (const auto &item : v.items())
            members[item.key()] = &item.value();
        for (const auto &member : members) {
            if (!first)
                out += style.comma;
            first = false;
            new_line(level + 1);
            out += Json(member.first).dump() + style.colon;
            write_json(out, *member.second, style, level + 1);
        }
    } else {
        for (const auto &item : v.items()) {
            if (!first)
                out += style.comma;
            first = false;
            new_line(level + 1);
            if (v.is_object())
                out += Json(item.key()).dump() + style.colon;
            write_json(out, item.value(), style, level + 1);
        }
    }
    new_line(level);
    out += v.is_object() ? '}' : ']';
}

/* minja's own writes an empty list or object over several lines when it indents. The arguments are
 * those of transformers. */
minja::Value make_tojson(const std::shared_ptr<minja::Context> &, minja::ArgumentsValue &args)
{
    minja::Value indent, separators;
    JsonStyle style;
    std::string text;

    if (args.args.empty() || args.args.size() > 2)
        throw std::runtime_error("tojson takes a value and an indent");
    if (args.args.size() == 2)
        indent = args.args[1];
    for (const auto &named : args.kwargs) {
        if (named.first == "indent")
            indent = named.second;
        else if (named.first == "separators")
            separators = named.second;
        else if (named.first == "sort_keys")
            style.sorted = named.second.to_bool();
        else if (named.first != "ensure_ascii" || named.second.to_bool())
            throw std::runtime_error("tojson has no argument " + named.first);
    }
    if (!indent.is_null() &&
        (!indent.is_number_integer() || indent.get<int64_t>() < 0 || indent.get<int64_t>() > 16))
        throw std::runtime_error("tojson: the indent must be from 0 to 16");
    if (!indent.is_null()) {
        style.indent = static_cast<int>(indent.get<int64_t>());
        style.comma = ",";
    }
    if (!separators.is_null()) {
        if (!separators.is_array() || separators.size() != 2)
            throw std::runtime_error("tojson: separators are two strings");
        style.comma = separators.at(0).to_str();
        style.colon = separators.at(1).to_str();
    }
    write_json(text, args.args[0].get<Json>(), style, 0);
    return minja::Value(text);
}

/* Text from outside as a value: from_json, fromjson. */
minja::Value make_from_json(const std::shared_ptr<minja::Context> &, minja::ArgumentsValue &args)
{
    args.expectArgs("from_json", { 1, 1 }, { 0, 0 });
    if (!args.args[0].is_string())
        return args.args[0];
    const std::string text = args.args[0].get<std::string>();
    const char *why = too_complex(text.c_str());
    Json v = why ? Json(Json::value_t::discarded) : Json::parse(text, nullptr, false);

    if (v.is_discarded())
        throw std::runtime_error(std::string("from_json: ") + (why ? why : "not JSON"));
    return minja::Value(v);
}

/* Python's split and rsplit as far as minja has not got them: without a separator, with a limit. */
minja::Value split_text(minja::ArgumentsValue &args, bool from_right)
{
    const std::string text = args.args.at(0).to_str();
    minja::Value sep = args.args.size() > 1 ? args.args[1] : minja::Value(),
                 max = args.args.size() > 2 ? args.args[2] : minja::Value();
    std::vector<minja::Value> parts;
    int64_t n_left;

    for (const auto &named : args.kwargs)
        (named.first == "maxsplit" ? max : sep) = named.second;
    n_left = max.is_null() ? -1 : max.get<int64_t>();
    if (sep.is_null()) {
        std::istringstream words(text);
        for (std::string word; n_left != 0 && words >> word; n_left--)
            parts.emplace_back(word);
        std::string rest;
        if (std::getline(words >> std::ws, rest, '\0') && !rest.empty())
            parts.emplace_back(rest);
        return minja::Value::array(parts);
    }
    const std::string by = sep.get<std::string>();
    size_t begin = 0, end = text.size();

    if (by.empty())
        throw std::runtime_error("split() by nothing");
    for (; n_left != 0; n_left--) {
        const size_t at =
            from_right ? (end >= by.size() ? text.rfind(by, end - by.size()) : std::string::npos)
                       : text.find(by, begin);
        if (at == std::string::npos)
            break;
        if (from_right) {
            parts.insert(parts.begin(),
                         minja::Value(text.substr(at + by.size(), end - at - by.size())));
            end = at;
        } else {
            parts.emplace_back(text.substr(begin, at - begin));
            begin = at + by.size();
        }
    }
    parts.insert(from_right ? parts.begin() : parts.end(),
                 minja::Value(text.substr(begin, end - begin)));
    return minja::Value::array(parts);
}

/* Methods of Python's that templates call and minja has not got. The first argument is the object. */
minja::Value call_method(const std::string &name, minja::ArgumentsValue &args)
{
    minja::Value &self = args.args.at(0);
    const auto text = [&](size_t i) {
        return i < args.args.size() ? args.args[i].get<std::string>() : std::string();
    };

    if (self.is_object() && name == "values") {
        auto list = minja::Value::array();

        for (const auto &key : self.keys())
            list.push_back(self.at(key));
        return list;
    }
    if (self.is_array() && name == "extend" && args.args.size() == 2) {
        args.args[1].for_each([&](minja::Value &item) { self.push_back(item); });
        return minja::Value();
    }
    if (!self.is_string())
        throw std::runtime_error("Unknown method: " + name);
    const std::string own = text(0);

    if (name == "split" || name == "rsplit")
        return split_text(args, name == "rsplit");
    if (name == "splitlines") {
        auto list = minja::Value::array();
        std::istringstream lines(own);

        for (std::string line; std::getline(lines, line);)
            list.push_back(minja::Value(line));
        return list;
    }
    if (name == "join") {
        std::string out;
        bool first = true;

        if (args.args.size() != 2)
            throw std::runtime_error("join() takes a list");
        args.args[1].for_each([&](minja::Value &item) {
            out += (first ? "" : own) + item.to_str();
            first = false;
        });
        return minja::Value(out);
    }
    if (name == "removeprefix")
        return minja::Value(
            own.compare(0, text(1).size(), text(1)) == 0 ? own.substr(text(1).size()) : own);
    if (name == "removesuffix") {
        const std::string end = text(1);
        const bool has =
            own.size() >= end.size() && own.compare(own.size() - end.size(), end.size(), end) == 0;

        return minja::Value(has ? own.substr(0, own.size() - end.size()) : own);
    }
    if (name == "find") {
        const size_t at = own.find(text(1));

        return minja::Value(at == std::string::npos ? static_cast<int64_t>(-1)
                                                    : static_cast<int64_t>(at));
    }
    if (name == "count") {
        const std::string what = text(1);
        int64_t n = 0;

        for (size_t at = 0; !what.empty() && (at = own.find(what, at)) != std::string::npos;
             at += what.size())
            n++;
        return minja::Value(n);
    }
    if (name == "isdigit")
        return minja::Value(!own.empty() &&
                            own.find_first_not_of("0123456789") == std::string::npos);
    throw std::runtime_error("Unknown method: " + name);
}

constexpr const char *method_names[] = { "values",     "extend",       "split",       "rsplit",
                                         "splitlines", "join",         "find",        "count",
                                         "isdigit",    "removeprefix", "removesuffix" };

minja::Value make_strftime(int64_t now, minja::ArgumentsValue &args)
{
    const time_t seconds = static_cast<time_t>(now);
    char text[256];
    std::string format;
    struct tm tm;

    args.expectArgs("strftime_now", { 1, 1 }, { 0, 0 });
    format = args.args[0].get<std::string>();
    if (!localtime_r(&seconds, &tm))
        throw std::runtime_error("strftime_now() of a time that does not exist");
    return minja::Value(std::string(text, strftime(text, sizeof text, format.c_str(), &tm)));
}

} // namespace

struct nk_jinja {
    std::shared_ptr<minja::TemplateNode> root;
    std::string bos, eos;
    struct nk_jinja_caps caps = {};
    bool needs_content = false; /* fails on messages without content; "" is given instead */
};

namespace
{

struct Request {
    Json messages, tools, extra;
    bool add_generation_prompt = false;
    int64_t now = 0;
};

/* Throws. */
void render(const nk_jinja &j, const Request &r, nk_buf *out, Limits &limits)
{
    char here;
    auto root = std::make_shared<Root>(minja::Context::builtins(), limits);
    Clearing clearing{ root };
    Sink sink(out, limits);
    std::ostringstream stream;
    const int64_t now = r.now;

    limits.stack_base = reinterpret_cast<uintptr_t>(&here);
    root->set("messages", minja::Value(r.messages));
    root->set("add_generation_prompt", minja::Value(r.add_generation_prompt));
    root->set("bos_token", minja::Value(j.bos));
    root->set("eos_token", minja::Value(j.eos));
    root->set("range", minja::Value::callable([&limits](const std::shared_ptr<minja::Context> &,
                                                        minja::ArgumentsValue &args) {
                  return make_range(limits, args);
              }));
    root->set("tojson", minja::Value::callable(make_tojson));
    root->set("from_json", minja::Value::callable(make_from_json));
    root->set("fromjson", minja::Value::callable(make_from_json));
    for (const char *name : method_names)
        root->set(std::string("method ") + name,
                  minja::Value::callable(
                      [name](const std::shared_ptr<minja::Context> &, minja::ArgumentsValue &args) {
                          return call_method(name, args);
                      }));
    root->set("strftime_now", minja::Value::callable([now](const std::shared_ptr<minja::Context> &,
                                                           minja::ArgumentsValue &args) {
                  return make_strftime(now, args);
              }));
    if (!r.tools.is_null())
        root->set("tools", minja::Value(r.tools));
    for (const auto &kv : r.extra.items())
        root->set(minja::Value(kv.key()), minja::Value(kv.value()));
    static_cast<std::ios &>(stream).rdbuf(&sink);
    stream.exceptions(std::ios::badbit); /* let the sink's exceptions through */
    j.root->render(stream, root);
}

/* Jinja's lstrip_blocks, which transformers sets: spaces and tabs between a line's beginning and a
 * block or a comment disappear, unless it begins with {%+ (or {%-, which strips more). minja has
 * the option too, but takes the spaces in front of {{ as well, and then a prompt is a space
 * short. */
std::string strip_before_blocks(const std::string &in)
{
    std::string out;
    size_t i = 0;

    while (i < in.size()) {
        const char kind = in[i] == '{' && i + 1 < in.size() ? in[i + 1] : '\0';
        const char close = kind == '{' ? '}' : kind;
        int depth = 0;
        char quote = '\0';

        if (kind != '{' && kind != '%' && kind != '#') {
            out += in[i++];
            continue;
        }
        if (kind != '{') {
            size_t begin = out.size();

            while (begin > 0 && (out[begin - 1] == ' ' || out[begin - 1] == '\t'))
                begin--;
            if ((begin == 0 || out[begin - 1] == '\n') && (i + 2 >= in.size() || in[i + 2] != '+'))
                out.resize(begin);
        }
        out.append(in, i, 2);
        i += 2;
        if (kind == '%' && i < in.size() && in[i] == '+')
            i++;
        for (; i < in.size();
             out += in[i++]) { /* to the tag's end: not in a string, not in a dictionary */
            if (kind == '#') {
                if (in.compare(i, 2, "#}") == 0)
                    break;
            } else if (quote) {
                if (in[i] == '\\' && i + 1 < in.size())
                    out += in[i++];
                else if (in[i] == quote)
                    quote = '\0';
            } else if (in[i] == '\'' || in[i] == '"') {
                quote = in[i];
            } else if (depth <= 0 && in[i] == close && i + 1 < in.size() && in[i + 1] == '}') {
                break;
            } else if (in[i] == '{') {
                depth++;
            } else if (in[i] == '}') {
                depth--;
            }
        }
        if (i + 1 < in.size()) {
            out.append(in, i, 2);
            i += 2;
        }
    }
    return out;
}

/* ---- what a template can do ---- */

/* The example's text; "" when the template refuses it. */
std::string example(const nk_jinja &j, Json messages, Json tools = Json())
{
    nk_buf buf = NK_BUF_INIT(1 << 20);
    std::string text;

    try {
        Request r;
        Limits limits;

        limits.n_steps_left = example_steps_max;
        r.messages = std::move(messages);
        r.tools = std::move(tools);
        r.extra = Json::object();
        render(j, r, &buf, limits);
        text.assign(nk_buf_str(&buf), buf.size);
    } catch (const std::exception &) {
    }
    nk_buf_release(&buf);
    return text;
}

bool has(const std::string &text, const char *part)
{
    return text.find(part) != std::string::npos;
}

Json typed(const char *text)
{
    return Json::array({ { { "type", "text" }, { "text", text } } });
}

Json assistant_with_call(const Json &content, const Json &arguments)
{
    return { { "role", "assistant" },
             { "content", content },
             { "tool_calls",
               Json::array({ { { "id", "call00001" },
                               { "type", "function" },
                               { "function",
                                 { { "name", "nk_tool" }, { "arguments", arguments } } } } }) } };
}

/* An argument that was rendered, as JSON or as an XML-like element; one that was escaped twice does
 * not count. */
bool shows_argument(const std::string &text)
{
    return has(text, "\"nk_arg\"") || has(text, "'nk_arg':") || has(text, "=nk_arg>") ||
           has(text, "<nk_arg>") || has(text, "nk_arg</") || has(text, "nk_arg=") ||
           has(text, "nk_arg:");
}

void find_caps(nk_jinja &j)
{
    const Json arguments = { { "nk_arg", "nk_value" } };
    const Json parameters = { { "type", "object" },
                              { "properties", { { "nk_arg", { { "type", "string" } } } } },
                              { "required", Json::array({ "nk_arg" }) } };
    const Json tools = Json::array({ { { "type", "function" },
                                       { "function",
                                         { { "name", "nk_tool" },
                                           { "description", "nk_about" },
                                           { "parameters", parameters } } } } });
    Json user = { { "role", "user" }, { "content", "nk_user" } };
    Json system = { { "role", "system" }, { "content", "nk_system" } };
    bool from_text, from_object, prints_object;

    j.caps.typed_content =
        !has(example(j, Json::array({ user })), "nk_user") &&
        has(example(j, Json::array({ { { "role", "user" }, { "content", typed("nk_user") } } })),
            "nk_user");
    if (j.caps.typed_content) {
        user["content"] = typed("nk_user");
        system["content"] = typed("nk_system");
    }
    j.caps.system_role = has(example(j, Json::array({ system, user })), "nk_system");
    j.caps.tools = has(example(j, Json::array({ user }), tools), "nk_tool");
    {
        const Json without = { { "role", "assistant" }, { "content", nullptr } };
        const Json empty = { { "role", "assistant" },
                             { "content", j.caps.typed_content ? typed("") : Json("") } };

        j.needs_content = has(example(j, Json::array({ user, empty, user })), "nk_user") &&
                          !has(example(j, Json::array({ user, without, user })), "nk_user");
    }
    {
        const Json content = j.needs_content ? Json("") : Json();

        from_text = shows_argument(
            example(j, Json::array({ user, assistant_with_call(content, arguments.dump()) })));
        const std::string given_object =
            example(j, Json::array({ user, assistant_with_call(content, arguments) }));

        from_object = shows_argument(given_object);
        prints_object = has(given_object, "{'nk_arg':");
    }
    j.caps.tool_calls = from_text || from_object;
    /* Where it takes both, an object is what transformers gives it; but some print an object as
     * Python would, and JSON text as it is. */
    j.caps.object_arguments = from_object && (!from_text || !prints_object);
}

/* ---- input ---- */

int bad_messages(nk_error *err, const char *what, const char *why)
{
    return nk_fail(err, NK_E_INVALID, "bad_messages", "%s: %s", what, why);
}

int parse(const char *what, const char *text, Json &out, nk_error *err)
{
    const char *why = too_complex(text);

    if (why)
        return bad_messages(err, what, why);
    out = Json::parse(text, nullptr, false);
    if (out.is_discarded())
        return bad_messages(err, what, "not JSON");
    return 0;
}

/* Text parts of a typed content as one string. NULL result: another kind of part. */
bool flatten(const Json &parts, std::string &text)
{
    for (const auto &part : parts) {
        if (!part.is_object() || part.value("type", Json()) != "text" || !part.contains("text") ||
            !part["text"].is_string())
            return false;
        if (!text.empty())
            text += '\n';
        text += part["text"].get<std::string>();
    }
    return true;
}

int adapt_call(const nk_jinja &j, Json &call, nk_error *err)
{
    Json *function = call.is_object() && call.contains("function") ? &call["function"] : nullptr;

    if (!function || !function->is_object() || !function->contains("name") ||
        !(*function)["name"].is_string())
        return bad_messages(err, "tool_calls",
                            "an entry is not {\"function\": {\"name\": ..., \"arguments\": ...}}");
    Json &arguments = (*function)["arguments"];
    if (arguments.is_null() ||
        (arguments.is_string() && arguments.get_ref<const std::string &>().empty()))
        arguments = Json::object();
    if (arguments.is_string()) {
        Json parsed;
        const int rc = parse("a tool call's arguments",
                             arguments.get_ref<const std::string &>().c_str(), parsed, err);

        if (rc)
            return rc;
        if (!parsed.is_object())
            return bad_messages(err, "a tool call's arguments", "not a JSON object");
        if (j.caps.object_arguments)
            arguments = std::move(parsed);
    } else if (!arguments.is_object()) {
        return bad_messages(err, "a tool call's arguments", "neither JSON text nor an object");
    } else if (!j.caps.object_arguments) {
        std::string text;

        write_json(text, arguments, JsonStyle(), 0);
        arguments = text;
    }
    return 0;
}

int adapt_message(const nk_jinja &j, Json &m, nk_error *err)
{
    if (!m.is_object() || !m.contains("role") || !m["role"].is_string())
        return bad_messages(err, "messages", "an entry is not an object with a role");
    if (m.contains("tool_calls") && !m["tool_calls"].is_null()) {
        if (!m["tool_calls"].is_array())
            return bad_messages(err, "tool_calls", "not a list");
        for (auto &call : m["tool_calls"]) {
            const int rc = adapt_call(j, call, err);

            if (rc)
                return rc;
        }
    }
    Json &content = m["content"];
    if (content.is_array() && !j.caps.typed_content) {
        std::string text;

        if (!flatten(content, text))
            return bad_messages(err, "content", "only parts of type \"text\" are understood");
        content = text;
    } else if (content.is_string() && j.caps.typed_content) {
        content = typed(content.get_ref<const std::string &>().c_str());
    } else if (content.is_null()) {
        if (j.needs_content)
            content = j.caps.typed_content ? typed("") : Json("");
    } else if (!content.is_string() && !content.is_array()) {
        return bad_messages(err, "content", "neither text nor a list of parts");
    }
    return 0;
}

/* Where the template has no system role: its text goes in front of the next user message, or makes
 * one. */
void merge_system(Json &messages)
{
    Json merged = Json::array();
    std::string pending;

    for (auto &m : messages) {
        Json &content = m["content"];

        if (m["role"] == "system" && content.is_string()) {
            pending += (pending.empty() ? "" : "\n") + content.get<std::string>();
            continue;
        }
        if (!pending.empty()) {
            if (m["role"] == "user" && content.is_string())
                content = pending + "\n" + content.get<std::string>(); /* llama.cpp's way */
            else
                merged.push_back({ { "role", "user" }, { "content", pending } });
            pending.clear();
        }
        merged.push_back(std::move(m));
    }
    if (!pending.empty())
        merged.push_back({ { "role", "user" }, { "content", pending } });
    messages = std::move(merged);
}

/* What render() sets, and minja's own functions and filters. */
bool is_reserved(const std::string &name)
{
    static const char *const set_here[] = { "messages",  "tools",        "add_generation_prompt",
                                            "bos_token", "eos_token",    "range",
                                            "tojson",    "strftime_now", "from_json",
                                            "fromjson" };

    for (const char *s : set_here)
        if (name == s)
            return true;
    return minja::Context::builtins()->contains(minja::Value(name));
}

int read_input(const nk_jinja &j, const nk_jinja_input *in, Request &r, nk_error *err)
{
    const size_t size = strlen(in->messages) + (in->tools ? strlen(in->tools) : 0) +
                        (in->extra ? strlen(in->extra) : 0);
    int rc;

    if (size > NK_JINJA_INPUT_MAX)
        return bad_messages(err, "messages", "too large");
    rc = parse("messages", in->messages, r.messages, err);
    if (!rc && in->tools)
        rc = parse("tools", in->tools, r.tools, err);
    if (!rc)
        rc = parse("extra", in->extra ? in->extra : "{}", r.extra, err);
    if (rc)
        return rc;
    if (!r.messages.is_array())
        return bad_messages(err, "messages", "not a list");
    if (!r.tools.is_null() && !r.tools.is_array())
        return bad_messages(err, "tools", "not a list");
    if (!r.extra.is_object())
        return bad_messages(err, "extra", "not an object");
    for (const auto &kv : r.extra.items())
        if (is_reserved(kv.key()))
            return nk_fail(
                err, NK_E_INVALID, "reserved_name",
                "\"%.60s\" is set by the gateway, or a function of templates; a variable "
                "of the template itself can be given",
                kv.key().c_str());
    for (auto &m : r.messages) {
        rc = adapt_message(j, m, err);
        if (rc)
            return rc;
    }
    if (!j.caps.system_role && !j.caps.typed_content)
        merge_system(r.messages);
    if (r.tools.is_array() && r.tools.empty())
        r.tools = Json(); /* no tools: templates ask `tools is not none` */
    r.add_generation_prompt = in->add_generation_prompt;
    r.now = in->now;
    return 0;
}

/* The first line of what minja says: the place follows, with lines of the template around it. */
int bad_template(nk_error *err, const char *what)
{
    return nk_fail(err, NK_E_INVALID, "bad_template", "the chat template: %.*s",
                   static_cast<int>(strcspn(what, "\n")), what);
}

} // namespace

int nk_jinja_new(nk_jinja **out, const char *tmpl, const char *bos, const char *eos,
                 struct nk_error *err)
{
    const size_t size = strnlen(tmpl, NK_JINJA_TEMPLATE_MAX + 1);
    size_t at;

    *out = nullptr;
    if (size > NK_JINJA_TEMPLATE_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_template",
                       "the chat template is larger than %d bytes", NK_JINJA_TEMPLATE_MAX);
    if (!nk_utf8_valid(tmpl, size, &at))
        return nk_fail(err, NK_E_INVALID, "bad_template",
                       "the chat template is not UTF-8 at byte %zu", at);
    try {
        auto j = std::make_unique<nk_jinja>();

        j->bos = bos ? bos : "";
        j->eos = eos ? eos : "";
        /* As transformers does: trim_blocks, lstrip_blocks (above), no newline at the end. */
        j->root = minja::Parser::parse(strip_before_blocks(tmpl), { true, false, false });
        find_caps(*j);
        *out = j.release();
        return 0;
    } catch (const std::bad_alloc &) {
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the chat template");
    } catch (const std::exception &e) {
        return bad_template(err, e.what());
    } catch (...) {
        return bad_template(err, "unknown failure");
    }
}

void nk_jinja_free(nk_jinja *j)
{
    delete j;
}

struct nk_jinja_caps nk_jinja_describe(const nk_jinja *j)
{
    return j->caps;
}

int nk_jinja_render(const nk_jinja *j, const struct nk_jinja_input *input, struct nk_buf *out,
                    struct nk_error *err)
{
    const size_t before = out->size;
    Limits limits;
    int rc;

    try {
        Request r;

        rc = read_input(*j, input, r, err);
        if (!rc)
            render(*j, r, out, limits);
    } catch (const std::bad_alloc &) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory to render the chat template");
    } catch (const std::exception &e) {
        rc = limits.out_of_room
                 ? nk_fail(err, NK_E_EXHAUSTED, "too_large",
                           "the rendered chat template is larger than %zu bytes", out->max)
                 : bad_template(err, e.what());
    } catch (...) {
        rc = bad_template(err, "unknown failure");
    }
    if (rc && out->data) { /* nothing half-written */
        out->size = before;
        out->data[before] = '\0';
    }
    return rc;
}
