// Beside a real server, which PGHOST and so on name: who writes an object that he fetched before somebody else wrote the row.
import assert from "node:assert/strict";
import { test } from "node:test";
import pg from "pg";
import { effective, statement, toWrite, type Effective, type Upgrade } from "../src/index.js";

interface Article {
  readonly id: number;
  readonly headline: string;
  readonly content: string;
  readonly length: number | null;
  readonly blocks: readonly unknown[] | null;
  readonly label: string | null;
  readonly applied_upgrades: readonly string[] | null;
}

/** One made from a column of the application, one from what an upgrade in SQL makes. */
const upgrades: readonly Upgrade<Article>[] = [
  { name: "blocks", inputs: ["content"], apply: ({ content }) => ({ blocks: [{ text: content }] }) },
  { name: "label", inputs: ["length"], derived: ["length"], apply: ({ length }) => ({ label: `${length} characters` }) },
];

const encode = (column: string, value: unknown) => (column === "blocks" ? JSON.stringify(value) : value);

async function fetched(session: pg.Client, id: number): Promise<Effective<Article>> {
  const { rows } = await session.query<Article>("select * from article__current where id = $1", [id]);
  return effective(rows[0]!, upgrades);
}

/** How many rows were written. */
async function save(session: pg.Client, object: Effective<Article>, changes: Partial<Article>): Promise<number | null> {
  const { text, values } = statement("article", { id: object.row.id }, toWrite(object, changes), encode);
  return (await session.query(text, [...values])).rowCount;
}

/** Whether a row has what its content makes, and is right in what it lacks. */
async function fits(session: pg.Client, id: number): Promise<boolean> {
  const { rows } = await session.query(
    `select headline = 'better' and blocks = jsonb_build_array(jsonb_build_object('text', content)) and length = length(content)
            and applied_upgrades @> '{length,blocks}' and (label is not distinct from length || ' characters' or not applied_upgrades @> '{label}') as fits
       from article where id = $1`,
    [id],
  );
  return rows[0].fits;
}

test("an object that somebody else has written meanwhile", { skip: !process.env["PGHOST"] && "no server" }, async (t) => {
  const [session, other] = [new pg.Client(), new pg.Client()];
  await Promise.all([session.connect(), other.connect()]);
  t.after(() => Promise.all([session.end(), other.end()]));
  await session.query("create extension if not exists migrator");
  await session.query(
    "create table article (id int primary key, headline text not null, content text not null, length int, blocks jsonb, label text)",
  );
  await session.query("insert into article select n, 'headline', 'content ' || n from generate_series(1, 4) n");
  await session.query(`select migrator.register_upgrade('article', 'length', '{"length": "length(content)"}')`);
  await session.query("select migrator.register_upgrade('article', 'blocks', inputs => '{content}', outputs => '{blocks}')");
  await session.query("select migrator.register_upgrade('article', 'label', inputs => '{length}', outputs => '{label}')");

  await t.test("nobody has", async () => {
    assert.equal(await save(session, await fetched(session, 1), { headline: "better" }), 1);
    assert.ok(await fits(session, 1));
    // What comes of an input that SQL makes is shown, and done by workers.
    assert.equal((await fetched(session, 1)).row.label, "9 characters");
    await session.query(
      `select migrator.mark_applied('article', 'label', (select jsonb_agg(jsonb_build_object('key', key, 'token', token,
         'values', jsonb_build_object('label', "row" ->> 'length' || ' characters'))) from migrator.select_batch('article', 'label')))`,
    );
    assert.deepEqual((await fetched(session, 1)).upgraded, {});
    // And falls behind when the content changes, which the application's own part does not.
    assert.equal(await save(session, await fetched(session, 1), { content: "new" }), 1);
    assert.ok(await fits(session, 1));
    assert.equal((await fetched(session, 1)).upgraded.label, "3 characters");
  });

  await t.test("before the UPDATE", async () => {
    const object = await fetched(session, 2);
    await other.query("update article set content = 'changed' where id = 2");
    assert.equal(await save(session, object, { headline: "better" }), 0);
    assert.equal(await save(session, await fetched(session, 2), { headline: "better" }), 1);
    assert.ok(await fits(session, 2));
  });

  await t.test("while the UPDATE waits for the row", async () => {
    const object = await fetched(session, 3);
    await other.query("begin");
    await other.query("update article set content = 'changed' where id = 3");
    const { rows } = await session.query("select pg_backend_pid() as pid");
    const saving = save(session, object, { headline: "better" });
    for (let waits = false; !waits; ) {
      waits = (await other.query("select pg_blocking_pids($1) <> '{}' as waits", [rows[0].pid])).rows[0].waits;
    }
    await other.query("commit");
    assert.equal(await saving, 0);
    assert.equal(await save(session, await fetched(session, 3), { headline: "better" }), 1);
    assert.ok(await fits(session, 3));
  });

  await t.test("a worker, and then a writer who wrote the same again", async () => {
    const object = await fetched(session, 4);
    await other.query("call migrator.run_upgrades('article')");
    await save(other, await fetched(other, 4), { blocks: ["by hand"] });
    assert.equal(await save(session, object, { headline: "better" }), 0);
    const again = await fetched(session, 4);
    assert.deepEqual(again.row.blocks, ["by hand"]);
    assert.equal(await save(session, again, { headline: "better" }), 1);
  });
});
