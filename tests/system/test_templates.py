"""Chat templates: the prompt is the one that Jinja gives, set up as transformers does. The templates are the small ones
of tests/data/templates, one in the form of each family, and pieces of what templates in use do."""
import datetime
import glob
import json
import os
import subprocess
import unittest

import jinja2
import jinja2.ext
import jinja2.sandbox

import nk

NOW = 1750000000
TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "the weather <b>&\"é\"",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "which"},
        "days": {"type": "integer", "description": "how many"}}, "required": ["city"]}}}]


def call(name, arguments, number):
    return {"id": f"call0000{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


USER = {"role": "user", "content": "What's the weather in Delft? é <b>&"}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "It rains."}
ARGUMENTS = {"city": "Delft", "days": 3, "tags": ["a", {"b": 1}], "wet": True, "share": 0.5}
CALL = {"role": "assistant", "content": "", "tool_calls": [call("get_weather", ARGUMENTS, 1)]}
CALLS = {"role": "assistant", "content": "I look.", "tool_calls": [
    call("get_weather", ARGUMENTS, 1), call("get_weather", {"city": "'s-Gravenhage \"\n"}, 2)]}
RESULT = {"role": "tool", "tool_call_id": "call00001", "content": "{\"rain\": true}"}
THOUGHT = {"role": "assistant", "content": "It rains.", "reasoning_content": "Delft is wet."}
CHATS = {
    "one question": ([USER], None, {}),
    "a system message": ([SYSTEM, USER], None, {}),
    "several turns": ([SYSTEM, USER, ANSWER, USER], None, {}),
    "with tools": ([SYSTEM, USER], TOOLS, {}),
    "a call and its result": ([USER, CALL, RESULT], TOOLS, {}),
    "two calls": ([USER, CALLS, RESULT, RESULT, ANSWER, USER], TOOLS, {}),
    "without thinking": ([USER, THOUGHT, USER], None, {"enable_thinking": False}),
}
# What templates in use do, and their engine has not always done as Jinja does.
PIECES = [
    "{% macro f(x) %}{{ x }}!{% endmacro %}{{ f('a').endswith('!') }}|{{ f('a')[0] }}|{{ f('ab').upper().lower() }}",
    "{{ 'a' ~ nothing ~ 'b' }}|{{ 1 ~ 2 }}|{{ 'x' ~ true }}",
    "{% for k, v in {'a': 1, 'b': [none, 1.5, 'x', false]}.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% set a = {} %}{{ 'yes' if a else 'no' }}|{{ 'yes' if {'a': 1} else 'no' }}|{{ (a or 'else') }}",
    "{{ ('a' and 'b') }}|{{ ('' and 'b') }}|{{ [1, 2][5] is defined }}|{{ 'x' if [1, 2][5] else 'y' }}",
    "{{ [1, 2, 3][1:9] }}|{{ [1, 2, 3][:-1] }}|{{ 'abc'[:2] }}|{{ [1, 2, 3][::-1] }}",
    "{{ [0, ''] == [0, ''] }}|{{ 0 in [0] }}|{{ {'a': 0} == {'a': 0} }}",
    "{{ nothing is undefined }}|{{ 'a' is sequence }}|{{ [1] is sequence }}",
    "{% for i in [1, 2] %}{% if i == 1 %}{% set x = 1 %}{% endif %}{{ x is defined }}{% endfor %}{{ i is defined }}",
    "{{ 'a</t>b</t>c'.split('</t>', 1)[1] }}|{{ 'a b  c'.split() }}|{{ 'a.b.c'.rsplit('.', 1) }}",
    "{{ 'abc'.removeprefix('a') }}|{{ ', '.join(['a', 'b']) }}|{{ 'abcb'.find('b') }}|{{ {'a': 1}.values() | list }}",
    "{{ {'b': 1, 'a': [1, 2]} | tojson(sort_keys=True) }}|{{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}",
    "{{ {'a': 'é<', 'b': []} | tojson(indent=2) }}",
    "{{ strftime_now('%d %b %Y') }}",
    "{% for x in [1, 2, 3, 4] if x % 2 == 0 %}{{ loop.index }}:{{ x }}{% if loop.last %}.{% endif %}{% endfor %}",
    "{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% set ns = namespace(x=[]) %}{% for i in range(3) %}{% set ns.x = ns.x + [i] %}{% endfor %}{{ ns.x | join('-') }}",
    "{{ messages[0].content | trim | length }}|{{ messages[0]['content'].startswith('W') }}|{{ messages[0].none }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|{{ messages[-1].role | default('x', true) }}",
    "a {%- if true %} b {% endif -%} c\n  {% if true %}\n  d\n  {% endif %}\ne\n",
]


def oracle(template, messages, tools, extra, add_generation_prompt=True):
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.datetime.fromtimestamp(NOW).strftime(form)
    return env.from_string(template).render(
        messages=messages, tools=tools, documents=None, add_generation_prompt=add_generation_prompt,
        bos_token="<s>", eos_token="</s>", **extra)


def with_text(messages):
    """The same with arguments as JSON text, for the templates that add them to strings."""
    messages = json.loads(json.dumps(messages))
    for m in messages:
        for c in m.get("tool_calls", []):
            c["function"]["arguments"] = json.dumps(c["function"]["arguments"], ensure_ascii=False)
    return messages


class Templates(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.tool = subprocess.Popen([os.path.join(os.path.dirname(nk.NAKSHATRA), "tools", "render")],
                                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @classmethod
    def tearDownClass(cls):
        cls.tool.communicate()

    def render(self, template, messages, tools, extra, add_generation_prompt=True):
        self.tool.stdin.write(json.dumps({"template": template, "messages": messages, "tools": tools, "extra": extra,
                                          "add_generation_prompt": add_generation_prompt, "now": NOW}) + "\n")
        self.tool.stdin.flush()
        return json.loads(self.tool.stdout.readline())

    def compare(self, template, messages, tools, extra):
        try:
            want = oracle(template, messages, tools, extra)
        except (TypeError, jinja2.exceptions.TemplateError):
            try:
                want = oracle(template, with_text(messages), tools, extra)
            except jinja2.exceptions.TemplateError as e:
                want = None
                refused = str(e)
        if want is not None and messages[0] is SYSTEM and SYSTEM["content"] not in want:
            # Without a system role its text goes in front of the user's (docs/api.md).
            return self.compare(template, [dict(USER, content=SYSTEM["content"] + "\n" + USER["content"])] + messages[2:],
                                tools, extra)
        got = self.render(template, messages, tools, extra)
        if want is None:
            self.assertIn(refused, got.get("error", ""))
        else:
            self.assertEqual(got.get("text", got.get("error")), want)

    def test_each_familys_template_gives_jinjas_prompt(self):
        paths = glob.glob(os.path.join(os.path.dirname(__file__), "..", "data", "templates", "*.jinja"))
        self.assertGreater(len(paths), 20)
        for path in sorted(paths + glob.glob(os.path.join(os.environ.get("NK_MORE_TEMPLATES", "-"), "*.jinja"))):
            with open(path, encoding="utf-8") as f:
                template = f.read()
            for what, (messages, tools, extra) in CHATS.items():
                with self.subTest(template=os.path.basename(path), chat=what):
                    self.compare(template, messages, tools, extra)

    def test_what_templates_do_is_done_as_jinja_does_it(self):
        for template in PIECES:
            with self.subTest(template):
                self.compare(template, [USER], None, {})


if __name__ == "__main__":
    unittest.main()
