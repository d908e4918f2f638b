/** The old version: it knows nothing of upgrades. */
import { setTimeout as pause } from "node:timers/promises";
import { encode, Newsroom, type Article } from "./newsroom.js";

const room = new Newsroom();

async function set(column: string, value: string): Promise<void> {
  const sql = `update article set ${column} = $1 where id = $2 returning id, edits`;
  room.tell(await room.query<Article>(sql, [value, room.id()]), { [column]: value });
}

/** As an object-relational mapper does it: every column that was read is written, those that are new to this version too. */
async function wholeRow(): Promise<void> {
  const [article] = await room.query<Article>("select * from article where id = $1", [room.id()]);
  if (article === undefined) return;
  await pause(room.random() * 10);
  const { id, ...rest } = { ...article, content: room.text("rewritten") };
  const columns = Object.entries(rest);
  const sql = `update article set ${columns.map(([name], place) => `${name} = $${place + 3}`).join(", ")}
               where id = $1 and edits = $2 returning id, edits`;
  const values = columns.map(([name, value]) => encode(name, value));
  room.tell(await room.query<Article>(sql, [id, article.edits, ...values]), { content: rest.content, headline: rest.headline, status: rest.status });
}

await room.work([
  () => set("headline", room.text("headline")),
  () => set("content", room.text("old content")),
  () => set("status", room.random() < 0.5 ? room.text("dead") : "live"),
  wholeRow,
  wholeRow,
  async () => {
    const content = room.text("new article");
    const sql = "insert into article (headline, content) values ('by an old version', $1) returning id, edits";
    room.tell(await room.query<Article>(sql, [content]), { headline: "by an old version", content, status: "live" });
  },
  async () => {
    const sql = "delete from article where id = $1 and id % 5 = 0 returning id, edits + 1 as edits";
    room.tell(await room.query<Article>(sql, [room.id()]), { deleted: true });
  },
]);
