/** Upgrades articles in the background, with the code that the new version reads them with. */
import { Newsroom, toBlocks } from "./newsroom.js";

interface Handed {
  readonly key: object;
  readonly token: string;
  readonly row: { readonly content: string };
}

interface Answer {
  readonly applied: boolean;
  readonly reason: string | null;
}

const room = new Newsroom();

function give(rows: readonly object[]): Promise<Answer[]> {
  return room.query<Answer>("select applied, reason from migrator.mark_applied('article', 'blocks', $1)", [JSON.stringify(rows)]);
}

await room.work([
  async () => {
    const handed = await room.query<Handed>(`select key, token, "row" from migrator.select_batch('article', 'blocks', 20)`);
    if (handed.length === 0) return;
    let rows = handed.map(({ key, token, row }) => ({ key, token, values: { blocks: toBlocks(row.content) } }));
    let applied = 0;
    while (rows.length > 0) {
      const answers = await give(rows);
      // An answer may be lost: whoever asks again hears the same of what was applied, unless it was handed out again since.
      if (room.random() < 0.3) {
        const again = await give(rows);
        const denied = again.find(({ reason }, place) => answers[place]?.applied && /^(its inputs|another writer)/.test(reason ?? ""));
        if (denied !== undefined) throw new Error(`it was applied, and then it was not: ${denied.reason}`);
      }
      applied += answers.filter((answer) => answer.applied).length;
      // Somebody holds the row: it is still ours.
      rows = rows.filter((_, place) => answers[place]?.reason?.includes("call again"));
    }
    console.log(JSON.stringify({ applied }));
  },
]);
