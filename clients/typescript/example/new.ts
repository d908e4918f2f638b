/** The new version: it reads articles as blocks, whoever wrote them, and writes both shapes while the old version runs. */
import { deepStrictEqual, strictEqual } from "node:assert/strict";
import { setTimeout as pause } from "node:timers/promises";
import { effective, statement, toWrite, type Effective, type Upgrade } from "../src/index.js";
import { encode, Newsroom, toBlocks, type Article as Common, type Block } from "./newsroom.js";

interface Article extends Common {
  readonly is_live: boolean;
  readonly blocks: readonly Block[] | null;
  readonly applied_upgrades: readonly string[] | null;
}

const upgrades: readonly Upgrade<Article>[] = [
  { name: "blocks", inputs: ["content"], apply: ({ content }) => ({ blocks: toBlocks(content) }) },
];

const room = new Newsroom();

/** What is read is right, at any time: one column is SQL's to upgrade, the other ours. */
function checked(article: Effective<Article>): Effective<Article> {
  strictEqual(article.row.is_live, article.row.status === "live");
  deepStrictEqual(article.row.blocks, toBlocks(article.row.content));
  return article;
}

async function read(condition: string, value: number): Promise<Effective<Article>[]> {
  const rows = await room.query<Article>(
    `select id, headline, content, status, edits, is_live, blocks, applied_upgrades from article__current where ${condition}`,
    [value],
  );
  return rows.map((row) => checked(effective(row, upgrades)));
}

/** Somebody thinks for a while between reading and saving; where another was quicker, it begins anew. */
async function save(changes: Partial<Article>): Promise<void> {
  const id = room.id();
  for (;;) {
    const [article] = await read("id = $1", id);
    if (article === undefined) return;
    await pause(room.random() * 10);
    const { text, values } = statement("article", { id: article.row.id }, toWrite(article, changes), encode);
    const written = await room.query<Article>(`${text} returning id, edits`, values);
    room.tell(written, changes);
    if (written.length > 0) return;
  }
}

await room.work([
  () => save({ headline: room.text("headline") }),
  () => save({ headline: room.text("headline") }),
  () => save({ content: room.text("new content") }),
  () => save({ status: room.random() < 0.5 ? room.text("dead") : "live" }),
  async () => {
    const article = { headline: "by a new version", content: room.text("new article"), status: "live" };
    const sql = `insert into article (headline, content, status, blocks, applied_upgrades)
                 values ($1, $2, $3, $4, '{blocks}') returning id, edits`;
    const values = [article.headline, article.content, article.status, JSON.stringify(toBlocks(article.content))];
    room.tell(await room.query<Article>(sql, values), article);
  },
  async () => void (await read("id between $1 and $1 + 20", room.id())),
]);
