/** The version after that: every article has blocks, no name of an upgrade is known any more. */
import { deepStrictEqual, strictEqual } from "node:assert/strict";
import { Newsroom, toBlocks, type Article as Common, type Block } from "./newsroom.js";

interface Article extends Common {
  readonly is_live: boolean;
  readonly blocks: readonly Block[];
}

const room = new Newsroom();

await room.work([
  async () => {
    const content = room.text("newest content");
    const sql = "update article set content = $1, blocks = $2 where id = $3 returning id, edits";
    room.tell(await room.query<Article>(sql, [content, JSON.stringify(toBlocks(content)), room.id()]), { content });
  },
  async () => {
    const status = room.random() < 0.5 ? room.text("dead") : "live";
    const sql = "update article set status = $1, is_live = $2 where id = $3 returning id, edits";
    room.tell(await room.query<Article>(sql, [status, status === "live", room.id()]), { status });
  },
  async () => {
    for (const article of await room.query<Article>("select * from article where id between $1 and $1 + 20", [room.id()])) {
      strictEqual(article.is_live, article.status === "live");
      deepStrictEqual(article.blocks, toBlocks(article.content));
    }
  },
]);
