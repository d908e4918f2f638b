/**
 * A newsroom, as small as an application can be: what its versions have in common. Each version is a process of its own that
 * writes articles until its standard input ends, and prints each write that the database acknowledged as a line of JSON.
 */
import { setTimeout as pause } from "node:timers/promises";
import pg from "pg";

/** What every version knows of an article. The database counts its edits. */
export interface Article {
  readonly id: string;
  readonly headline: string;
  readonly content: string;
  readonly status: string;
  readonly edits: number;
}

/** A piece of an article, as new versions keep it. */
export interface Block {
  readonly kind: "text" | "image";
  readonly value: string;
}

/** What old content means: a paragraph, or the name of a picture. Nothing that SQL would say easily. */
export function toBlocks(content: string): Block[] {
  return content.split("\n\n").map((value) => ({ kind: value.endsWith(".jpg") ? "image" : "text", value }));
}

/** A driver takes an array for an array of the database; `blocks` is jsonb. */
export function encode(column: string, value: unknown): unknown {
  return column === "blocks" && value !== null ? JSON.stringify(value) : value;
}

/** Numbers that look random and are the same for the same seed (mulberry32). */
export function seeded(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

export class Newsroom {
  readonly random = seeded(Number(process.env["SEED"] ?? 1));
  // A pooler of transactions is behind it: nothing may be expected of the session.
  readonly #pool = new pg.Pool({ max: 2 });
  #number = 0;
  #stopped = false;

  async query<Row extends object>(text: string, values: readonly unknown[] = []): Promise<Row[]> {
    return (await this.#pool.query<Row>(text, [...values])).rows;
  }

  /** The id of some article; half of all work is done on a few of them. */
  id(): number {
    return 1 + Math.floor(this.random() * (this.random() < 0.5 ? 30 : 600));
  }

  /** A text that nobody has written before. */
  text(kind: string): string {
    this.#number += 1;
    const picture = this.random() < 0.3 ? `\n\n${process.pid}-${this.#number}.jpg` : "";
    return `${kind} ${process.pid}-${this.#number}${picture}`;
  }

  /** Notes what the database has acknowledged. */
  tell(rows: readonly Pick<Article, "id" | "edits">[], what: object): void {
    for (const { id, edits } of rows) {
      console.log(JSON.stringify({ id, edits, ...what }));
    }
  }

  /** Does one of these again and again, until it is told to stop. */
  async work(doings: readonly (() => Promise<void>)[]): Promise<void> {
    process.stdin.on("end", () => (this.#stopped = true)).resume();
    while (!this.#stopped) {
      await doings[Math.floor(this.random() * doings.length)]!();
      await pause(this.random() * 4);
    }
    await this.#pool.end();
  }

  get stopped(): boolean {
    return this.#stopped;
  }
}
