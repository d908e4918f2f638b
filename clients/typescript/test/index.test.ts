import assert from "node:assert/strict";
import { test } from "node:test";
import { effective, toWrite, type Upgrade } from "../src/index.js";

interface Article {
  readonly id: number;
  readonly content: string;
  readonly blocks: readonly string[] | null;
  readonly words: number | null;
  readonly applied_upgrades: readonly string[] | null;
}

const upgrades: readonly Upgrade<Article>[] = [
  { name: "blocks", apply: (row) => ({ blocks: row.content.split("\n\n") }) },
  { name: "words", apply: (row) => ({ words: (row.blocks ?? []).join(" ").split(" ").length }) },
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
  assert.deepEqual(effective(all, upgrades), { row: all, upgraded: {} });
});

test("a name behind a missing one does not count", () => {
  const { row } = effective({ ...old, words: 99, applied_upgrades: ["words"] }, upgrades);
  assert.equal(row.words, 3);
});

test("a changed object is written together with its upgrades, an unchanged one not at all", () => {
  const fetched = effective(old, upgrades);
  assert.deepEqual(toWrite(fetched, {}), {});
  assert.deepEqual(toWrite(fetched, { words: 5 }), {
    blocks: ["one two", "three"],
    words: 5,
    applied_upgrades: ["blocks", "words"],
  });
});

test("a row that cannot be upgraded is not shown", () => {
  const broken: Upgrade<Article> = { name: "broken", apply: () => { throw new RangeError("no"); } };
  assert.throws(() => effective(old, [...upgrades, broken]), RangeError);
});
