import assert from "node:assert/strict";
import { test } from "node:test";
import { effective, statement, toWrite, type Upgrade } from "../src/index.js";

interface Article {
  readonly id: number;
  readonly content: string;
  readonly blocks: readonly string[] | null;
  readonly words: number | null;
  readonly applied_upgrades: readonly string[] | null;
}

const upgrades: readonly Upgrade<Article>[] = [
  { name: "blocks", inputs: ["content"], apply: (row) => ({ blocks: row.content.split("\n\n") }) },
  { name: "words", inputs: ["blocks"], apply: (row) => ({ words: (row.blocks ?? []).join(" ").split(" ").length }) },
];

const old: Article = { id: 1, content: "one two\n\nthree", blocks: null, words: null, applied_upgrades: null };

test("pending upgrades are applied in their order, each to what the one before made", () => {
  const { row, upgraded } = effective(old, upgrades);
  assert.deepEqual(row.blocks, ["one two", "three"]);
  assert.equal(row.words, 3);
  assert.deepEqual(row.applied_upgrades, ["blocks", "words"]);
  assert.deepEqual(upgraded, { blocks: ["one two", "three"], words: 3, applied_upgrades: ["blocks", "words"] });
  assert.equal(old.blocks, null, "the row that was fetched is not touched");
});

test("what is there is not applied again, and unknown names stay", () => {
  const done = { ...old, blocks: ["by hand"], applied_upgrades: ["of sql", "blocks"] };
  const { row } = effective(done, upgrades);
  assert.deepEqual(row.blocks, ["by hand"]);
  assert.deepEqual(row.applied_upgrades, ["of sql", "blocks", "words"]);
  const all = { ...done, words: 7, applied_upgrades: ["words", "blocks"] };
  assert.deepEqual(effective(all, upgrades).row, all);
  assert.deepEqual(effective(all, upgrades).upgraded, {});
});

test("a name behind a missing one does not count", () => {
  const { row } = effective({ ...old, words: 99, applied_upgrades: ["words"] }, upgrades);
  assert.equal(row.words, 3);
});

test("a changed object is written together with its upgrades, an unchanged one not at all", () => {
  const fetched = effective(old, upgrades);
  assert.deepEqual(toWrite(fetched, {}), { columns: {}, where: {} });
  assert.deepEqual(toWrite(fetched, { words: 5 }), {
    columns: { blocks: ["one two", "three"], words: 5, applied_upgrades: ["blocks", "words"] },
    where: { content: "one two\n\nthree", blocks: null, applied_upgrades: null },
  });
  const done = effective(fetched.row, upgrades);
  assert.deepEqual(toWrite(done, { id: 2 }), { columns: { id: 2 }, where: {} });
});

test("upgrades whose inputs the application changes are applied to the new values", () => {
  const fetched = effective(old, upgrades);
  assert.deepEqual(toWrite(fetched, { content: "new" }), {
    columns: { content: "new", blocks: ["new"], words: 1, applied_upgrades: ["blocks", "words"] },
    where: { blocks: null, applied_upgrades: null },
  });
  const done = effective(fetched.row, upgrades);
  assert.deepEqual(toWrite(done, { content: "new" }), {
    columns: { content: "new", blocks: ["new"], words: 1 },
    where: { blocks: ["one two", "three"] },
  });
  assert.deepEqual(toWrite(done, { content: "new", blocks: ["by hand"], words: 2 }).columns, {
    content: "new",
    blocks: ["by hand"],
    words: 2,
  });
});

test("what the database has still to make inputs for is left to it, with all behind", () => {
  const [blocks, words] = upgrades as [Upgrade<Article>, Upgrade<Article>];
  const derived = [blocks, { ...words, derived: ["blocks"] as const }, { ...blocks, name: "again" }];
  const { columns, where } = toWrite(effective(old, derived), { id: 2 });
  assert.deepEqual(columns, { id: 2, blocks: ["one two", "three"], applied_upgrades: ["blocks"] });
  assert.deepEqual(where, { content: old.content, applied_upgrades: null });
});

test("what is written is in the new shape where an upgrade changes its own input", () => {
  const louder: Upgrade<Article> = { name: "loud", inputs: ["content"], apply: (row) => ({ content: row.content + "!" }) };
  const fetched = effective(old, [louder]);
  assert.equal(fetched.row.content, "one two\n\nthree!");
  assert.deepEqual(toWrite(fetched, { content: "new" }).columns, { content: "new", applied_upgrades: ["loud"] });
  assert.deepEqual(toWrite(fetched, { words: 1 }).where, { content: old.content, applied_upgrades: null });
});

test("the statement compares in its own WHERE clause what the upgrades were made from", () => {
  const write = { columns: { words: 5 }, where: { blocks: ["x"], applied_upgrades: null } };
  assert.deepEqual(statement<Article>("public.article", { id: 1 }, write, (column, value) => [column, value]), {
    text:
      'update public.article as t set "words" = $1 where t."id" = $2 ' +
      'and t."blocks" is not distinct from $3 and t."applied_upgrades" is not distinct from $4',
    values: [["words", 5], ["id", 1], ["blocks", ["x"]], ["applied_upgrades", null]],
  });
  assert.throws(() => statement<Article>("article", { id: 1 }, { columns: {}, where: {} }), RangeError);
});

test("a row that cannot be upgraded is not shown", () => {
  const broken: Upgrade<Article> = { name: "broken", inputs: [], apply: () => { throw new RangeError("no"); } };
  assert.throws(() => effective(old, [...upgrades, broken]), RangeError);
});
