// Random JSON schemas, with ajv as the judge of their grammars: what a grammar lets through is valid, and valid documents in the form
// that grammars have (members in the schema's order, none that are not listed) are let through. Where the schema is refused nothing is
// judged, but each kind of schema must be taken often.
//
//     NK_SCHEMA_TOOL=build/tools/schema node schemas.mjs [SEED [ROUNDS]]
//
// prints the seed first, and for what is wrong the schema and the text.
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import Ajv from "ajv/dist/2020.js";
import addFormats from "ajv-formats";

const seed = Number(process.argv[2] ?? 1), rounds = Number(process.argv[3] ?? 250);
const ajv = new Ajv({ strict: false, multipleOfPrecision: 9, logger: false });
addFormats(ajv);

// ---- chance ----

let state = BigInt(seed) * 2n + 1n;
function random() { // xorshift64*
  state ^= state >> 12n;
  state = (state ^ (state << 25n)) & 0xffffffffffffffffn;
  state ^= state >> 27n;
  return Number(((state * 0x2545f4914f6cdd1dn) >> 32n) & 0xffffffffn) / 2 ** 32;
}
const below = (n) => Math.floor(random() * n);
const pick = (list) => list[below(list.length)];
const often = (p) => random() < p;
const some = (list, p) => list.filter(() => often(p));

// ---- schemas ----

const NAMES = ["a", "b", "ab", "x-1", "long name", "é"];
const PATTERNS = ["^[a-z]+$", "^a", "b$", "[0-9]{2}", "^(foo|bar)*$", "^[^a]{1,4}$", "^x?y*$", "^(?!ab)[a-z]{0,3}$", "\\d", "^\\w+@\\w+$"];
const FORMATS = ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "uri-reference", "uri-template",
  "json-pointer", "relative-json-pointer", "regex", "url", "byte", "x-none"];
const VALUES = [null, true, false, 0, 1, -3, 2.5, "", "a", "foo", "ab", [], [1, "a"], {}, { a: 1 }, { a: "a", b: null }];

const number = () => pick([0, 1, -1, 5, 10, -7, 100, 0.5, -0.25, 2.75, 1e3, below(2000) - 1000, (below(2000) - 1000) / 100]);
const limits = (schema, keys, p) => {
  for (const [key, make] of keys)
    if (often(p))
      schema[key] = make();
  return schema;
};

function stringSchema() {
  return limits({ type: "string" }, [["minLength", () => below(4)], ["maxLength", () => 1 + below(6)], ["pattern", () => pick(PATTERNS)]], 0.3);
}
function numberSchema() {
  return limits({ type: pick(["integer", "number"]) }, [["minimum", number], ["maximum", number], ["exclusiveMinimum", number], ["exclusiveMaximum", number],
    ["multipleOf", () => pick([1, 2, 3, 5, 7, 10, 0.5, 0.01, 0.25, 2.5, 50])]], 0.25);
}
function arraySchema(depth) {
  return limits({ type: "array" }, [["items", () => schema(depth - 1)], ["prefixItems", () => [schema(depth - 1), schema(depth - 1)].slice(below(2))],
    ["minItems", () => below(3)], ["maxItems", () => below(4)], ["uniqueItems", () => often(0.5)]], 0.35);
}
function objectSchema(depth) {
  const s = { type: "object" };
  if (often(0.8))
    s.properties = Object.fromEntries(some(NAMES, 0.4).map((n) => [n, schema(depth - 1)]));
  return limits(s, [["required", () => some(NAMES, 0.3)], ["additionalProperties", () => pick([false, false, true, schema(depth - 1)])],
    ["patternProperties", () => ({ [pick(PATTERNS)]: schema(depth - 1) })], ["propertyNames", () => pick([{ maxLength: 3 }, { pattern: "^[a-z]" }, { enum: ["a", "b", "c"] }])],
    ["minProperties", () => below(3)], ["maxProperties", () => below(4)], ["dependentRequired", () => ({ [pick(NAMES)]: some(NAMES, 0.3) })],
    ["unevaluatedProperties", () => false]], 0.2);
}
// What may stand anywhere; without a type now and then, as parts of a combination have none.
function plainSchema(depth) {
  const s = depth <= 0 ? pick([stringSchema, numberSchema])() : pick([stringSchema, numberSchema, arraySchema, objectSchema, objectSchema])(depth);
  if (often(0.2))
    delete s.type;
  if (s.type && often(0.1))
    s.type = [s.type, "null"];
  return s;
}
function schema(depth) {
  const few = () => [schema(depth - 1), schema(depth - 1), schema(depth - 1)].slice(below(2));
  const what = depth <= 0 ? below(5) : below(16);
  switch (what) {
    case 0: return { enum: some(VALUES, 0.3).concat([pick(VALUES)]) };
    case 1: return { const: pick(VALUES) };
    case 2: return pick([true, {}, { type: "null" }, { type: "boolean" }, limits({ type: "string", format: pick(FORMATS) },
      [["maxLength", () => pick([20, 36, 100, 2000])], ["minLength", () => pick([1, 10])]], 0.3)]);
    case 5: return { ...plainSchema(depth), anyOf: few() };
    case 6: return { oneOf: few(), ...(often(0.3) ? plainSchema(depth) : {}) };
    case 7: return { allOf: few(), ...(often(0.5) ? plainSchema(depth) : {}) };
    case 8: return { ...plainSchema(depth), not: schema(depth - 1) };
    case 9: return { ...plainSchema(depth), if: schema(depth - 1), then: schema(depth - 1), ...(often(0.5) ? { else: schema(depth - 1) } : {}) };
    case 10: return { $ref: pick(["#/$defs/one", "#/$defs/two", "http://x.test/three"]), ...(often(0.3) ? plainSchema(depth) : {}) };
    default: return plainSchema(depth);
  }
}

// The third has an $id, so that "#" within it is itself, with a "one" that is not the other.
function definitions() {
  const inner = { ...numberSchema(), $defs: {} };
  return { one: schema(1), two: { anyOf: [{ type: "null" }, objectSchema(1)] },
    three: { $id: "http://x.test/three", type: "object", properties: { a: { $ref: "#/$defs/one" } }, additionalProperties: false, $defs: { one: inner } } };
}

// ---- schemas with a document of theirs ----

// Documents in the form that grammars write, so that they must be let through.
function sampled(depth) {
  const kind = depth <= 0 ? below(6) : below(10), text = pick(["a", "foo", "bar9", "x y", "é\n\"", ""]);
  const length = [...text].length;
  switch (kind) {
    case 0: return [limits({ type: "string" }, [["minLength", () => below(length + 1)], ["maxLength", () => length + below(3)]], 0.5), () => text];
    case 1: {
      const n = below(2000) - 1000;
      return [limits({ type: "integer" }, [["minimum", () => n - below(50)], ["maximum", () => n + below(50)], ["multipleOf", () => pick([1, n || 1].filter((m) => m > 0 && m <= 500))]], 0.5), () => n];
    }
    case 2: {
      const n = (below(20000) - 10000) / 100;
      return [limits({ type: "number" }, [["minimum", () => n - below(3) / 4], ["exclusiveMaximum", () => n + 0.001 + below(5)], ["multipleOf", () => 0.01]], 0.5), () => n];
    }
    case 3: return [{ type: ["boolean", "null"] }, () => pick([true, false, null])];
    case 4: {
      const values = some(["a", 1, null, "long text", true], 0.5).concat(["b"]);
      return [{ enum: values }, () => pick(values)];
    }
    case 5: {
      const [pattern, match] = pick([["^[a-z]{2,4}$", "abc"], ["^\\d+-x", "12-xyz"], ["b+$", "abb"], ["^(?=.*\\d)[a-c0-9]+$", "ab1"]]);
      return [limits({ type: "string", pattern }, [["maxLength", () => match.length + below(3)], ["minLength", () => 2]], 0.4), () => match];
    }
    case 6: {
      const [items, make] = sampled(depth - 1), n = below(4);
      return [limits({ type: "array", items }, [["minItems", () => below(n + 1)], ["maxItems", () => n + below(2)]], 0.5), () => Array.from({ length: n }, make)];
    }
    case 7: { // one of several, beside what they have in common
      const [other] = sampled(depth - 1), [mine, make] = sampled(depth - 1);
      return [{ anyOf: often(0.5) ? [other, mine] : [mine, other] }, make];
    }
    case 8: { // joined objects
      const [one, makeOne] = sampled(depth - 1), [two, makeTwo] = sampled(depth - 1);
      return [{ allOf: [{ type: "object", properties: { p: one }, required: ["p"] }, { properties: { q: two }, required: ["q"] }] }, () => ({ p: makeOne(), q: makeTwo() })];
    }
    default: {
      const names = some(NAMES, 0.5), parts = names.map(() => sampled(depth - 1)), there = names.map(() => often(0.7));
      const s = { type: "object", properties: Object.fromEntries(names.map((n, i) => [n, parts[i][0]])), required: names.filter((n, i) => there[i] && often(0.6)) };
      return [limits(s, [["additionalProperties", () => pick([false, true])], ["minProperties", () => Math.min(there.filter(Boolean).length, below(3))], ["maxProperties", () => there.filter(Boolean).length]], 0.3),
        () => Object.fromEntries(names.flatMap((n, i) => (there[i] ? [[n, parts[i][1]()]] : [])))];
    }
  }
}

// A text as it may be, but for one thing.
function mutated(value) {
  if (often(0.25) || value === null || typeof value !== "object")
    return pick([...VALUES, number(), typeof value === "string" ? value + "b" : 7, typeof value === "number" ? value + 1 : "bar"]);
  if (Array.isArray(value)) {
    const copy = [...value], i = below(copy.length + 1);
    if (often(0.4))
      copy.splice(i, 1);
    else
      copy[i] = i < copy.length ? mutated(copy[i]) : pick(VALUES);
    return copy;
  }
  const copy = { ...value }, name = pick([...Object.keys(copy), pick(NAMES)]);
  if (often(0.4))
    delete copy[name];
  else
    copy[name] = name in copy ? mutated(copy[name]) : pick(VALUES);
  return copy;
}

// ---- questions and answers ----

function ask(questions) {
  const input = questions.map((q) => JSON.stringify(q) + "\n").join("");
  const done = spawnSync(process.env.NK_SCHEMA_TOOL, { input, maxBuffer: 1 << 30 });
  if (done.status !== 0)
    throw new Error(`${process.env.NK_SCHEMA_TOOL}: ${done.status ?? done.signal ?? done.error}\n${String(done.stderr).slice(-4000)}`);
  return String(done.stdout).trim().split("\n").map((line) => JSON.parse(line));
}

let wrong = 0;
function complain(what, s, text, more = "") {
  if (++wrong <= 20)
    console.log(`WRONG: ${what}\n  schema ${JSON.stringify(s)}\n  text   ${text}\n  ${more}`);
}
function judge(s, text, validate) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (e) {
    return complain("not JSON", s, text);
  }
  try {
    if (!validate(value))
      complain("let through and not valid", s, text, ajv.errorsText(validate.errors));
  } catch (e) { // ajv 8.20's own code can fail for unevaluatedProperties within oneOf, and runs in circles where a $ref does
    if (!(e instanceof RangeError) && !(e instanceof TypeError && JSON.stringify(s).includes("unevaluatedProperties")))
      throw e;
  }
  return value;
}

console.log(`seed ${seed}, ${rounds} rounds`);
const questions = [], oracles = [];
while (questions.length < rounds) {
  const s = schema(3), whole = typeof s === "object" && JSON.stringify(s).includes("$ref") ? { ...s, $defs: definitions() } : s;
  try {
    oracles.push(ajv.compile(whole));
    ajv.removeSchema("http://x.test/three"); // the next one has another
  } catch (e) {
    continue; // such as a pattern that JavaScript does not have
  }
  questions.push({ schema: whole, draws: 3, seed: questions.length + 1 });
}
const answers = ask(questions), again = [];
let n_taken = 0, n_texts = 0;
answers.forEach((a, i) => {
  if (a.error)
    return process.env.NK_REFUSED && console.log("refused:", a.error, JSON.stringify(questions[i].schema));
  n_taken++;
  const values = a.drawn.filter((t) => t !== null).map((t) => judge(questions[i].schema, t, oracles[i]));
  n_texts += values.length;
  again.push({ i, texts: values.concat(VALUES.slice(0, 3)).map(mutated).map((v) => JSON.stringify(v)) });
});
ask(again.map(({ i, texts }) => ({ schema: questions[i].schema, texts }))).forEach((a, k) => {
  again[k].texts.filter((_, t) => a.takes[t]).forEach((text) => judge(questions[again[k].i].schema, text, oracles[again[k].i]));
});

const samples = Array.from({ length: rounds }, () => {
  const [s, make] = sampled(3), value = make();
  if (!ajv.compile(s)(value))
    throw new Error(`the test's own document is not valid: ${JSON.stringify(s)} ${JSON.stringify(value)}`);
  return { schema: s, texts: [JSON.stringify(value)] };
});
ask(samples).forEach((a, i) => {
  if (a.error || !a.takes[0])
    complain(a.error ? "refused: " + a.error : "valid and not let through", samples[i].schema, samples[i].texts[0]);
});

// Everyday zod types, as z.toJSONSchema writes them (zod 4): none is refused.
const zod = JSON.parse(readFileSync(new URL("zod.json", import.meta.url)));
ask(Object.values(zod).map((s, i) => ({ schema: s, draws: 3, seed: seed + i }))).forEach((a, i) => {
  const [name, s] = Object.entries(zod)[i], validate = ajv.compile(s);
  if (a.error)
    return complain(`zod's ${name} is refused: ${a.error}`, s, "");
  a.drawn.filter((t) => t !== null).forEach((t) => judge(s, t, validate));
});

console.log(`${n_taken} of ${rounds} random schemas taken, ${n_texts} texts drawn, ${samples.length} documents, ${Object.keys(zod).length} zod types: ${wrong} wrong`);
if (n_taken < rounds / 3)
  console.log("too few schemas are taken for the test to say anything");
process.exit(wrong || n_taken < rounds / 3 ? 1 : 0);
