/** A row of a table whose rows remember their upgrades. */
export interface Upgradable {
  readonly applied_upgrades: readonly string[] | null;
}

/** An upgrade that application code does. */
export interface Upgrade<Row extends Upgradable> {
  /** Its name, as it was registered with `migrator.register_upgrade`. */
  readonly name: string;
  /** The columns that `apply` looks at, as they were registered. */
  readonly inputs: readonly (keyof Row & string)[];
  /**
   * Those of the inputs that upgrades in SQL make. Only the database knows what they will be once a row is written: such an
   * upgrade is applied in memory and left to workers, with all behind it, when the object is written.
   */
  readonly derived?: readonly (keyof Row & string)[];
  /** The columns that it writes, made from the row with all earlier upgrades applied. Depends on the inputs and nothing else. */
  readonly apply: (row: Readonly<Row>) => Partial<Row>;
}

/** A row as it is with its upgrades applied in memory. */
export interface Effective<Row extends Upgradable> {
  /** The row to work with. Its `applied_upgrades` has the names of what was applied. */
  readonly row: Row;
  /** Columns that the upgrades gave another value, and `applied_upgrades`; empty where nothing was pending. */
  readonly upgraded: Partial<Row>;
  /** The row as it was fetched. */
  readonly fetched: Row;
  /** All upgrades by application code, in order. */
  readonly upgrades: readonly Upgrade<Row>[];
}

/** How a changed object is written. */
export interface Write<Row extends Upgradable> {
  /** The columns to set; none where the application changed nothing. */
  readonly columns: Partial<Row>;
  /**
   * What the row must still have, or else the upgrades were made from something that is no longer there: inputs as they were
   * fetched, and `applied_upgrades`. Empty where nothing was made.
   */
  readonly where: Partial<Row>;
}

/**
 * Applies the pending ones of these upgrades, in their order, to a row that was fetched. Nothing is written, and the row that
 * was passed stays as it is.
 *
 * Fetch rows from the view `TABLE__current`, so that what SQL can say is applied already. `upgrades` are all upgrades by application code
 * of the table, in the order in which they were registered. A row never gets a later one before an earlier one, so a name
 * behind a missing one is applied again.
 *
 * What `apply` throws is thrown: a row that cannot be upgraded is not shown half upgraded.
 */
export function effective<Row extends Upgradable>(row: Row, upgrades: readonly Upgrade<Row>[]): Effective<Row> {
  const names = [...(row.applied_upgrades ?? [])];
  let upgraded: Partial<Row> = {};
  for (const upgrade of upgrades.slice(firstPending(row, upgrades))) {
    upgraded = { ...upgraded, ...upgrade.apply({ ...row, ...upgraded }) };
    if (!names.includes(upgrade.name)) {
      names.push(upgrade.name);
    }
    upgraded = { ...upgraded, applied_upgrades: [...names] };
  }
  return { row: { ...row, ...upgraded }, upgraded, fetched: row, upgrades };
}

/**
 * What to write when an object is saved: what the application changed, together with what the upgrades make of it and their
 * names, in one UPDATE. So the database can tell that whoever wrote the inputs knew of the outputs. Upgrades whose inputs the
 * application changed are applied to the new values; outputs that it wrote itself stay.
 *
 * The UPDATE has to hold `where` against the row in the same statement, see `statement`. Where it touches no row, somebody else
 * was quicker: fetch the row again. Without that, outputs made from old inputs would stand beside new ones, under the name, and
 * nothing would ever mend them.
 *
 * Nothing where the application changed nothing: reading a row is no reason to write it. What `apply` throws is thrown.
 */
export function toWrite<Row extends Upgradable>(effective: Effective<Row>, changes: Partial<Row>): Write<Row> {
  const { row, fetched, upgrades } = effective;
  let where: Partial<Row> = {};
  if (Object.keys(changes).length === 0) {
    return { columns: {}, where };
  }
  let made: Partial<Row> = {};
  const names = [...(fetched.applied_upgrades ?? [])];
  const first = firstPending(fetched, upgrades);
  for (const [place, upgrade] of upgrades.entries()) {
    const now = { ...made, ...changes };
    const rewritten = upgrade.inputs.some((input) => input in now && now[input] !== row[input]);
    if (place < first && !rewritten) {
      continue;
    }
    if (upgrade.derived?.length) {
      break;
    }
    const outputs = upgrade.apply(rewritten ? { ...row, ...now } : { ...fetched, ...made });
    // One that changes its own input: what the application wrote is in the new shape already.
    if (!rewritten || !upgrade.inputs.some((input) => input in outputs)) {
      made = { ...made, ...outputs };
    }
    for (const input of upgrade.inputs.filter((input) => !(input in changes))) {
      where = { ...where, [input]: fetched[input] };
    }
    if (place >= first) {
      if (!names.includes(upgrade.name)) {
        names.push(upgrade.name);
      }
      made = { ...made, applied_upgrades: [...names] };
      // Two writers may have come and gone, and left the inputs as they were.
      where = { ...where, applied_upgrades: fetched.applied_upgrades };
    }
  }
  return { columns: { ...made, ...changes }, where };
}

/** An UPDATE with `$1`, `$2`, … and the values for them. */
export interface Statement {
  readonly text: string;
  readonly values: readonly unknown[];
}

/**
 * The UPDATE for one row of a table. `table` is its name as SQL needs it, `key` the row's key.
 *
 * What must be as it was is compared in the WHERE clause of the UPDATE itself, which PostgreSQL looks at again where it had to
 * wait for another writer. So a value must come back from the driver as it went out: fetch a timestamp as text.
 *
 * `encode` turns a value into what the driver sends: a driver that takes an array for an array of the database needs
 * `JSON.stringify` for columns of type jsonb. A column of type json cannot be compared, and so cannot be an input here.
 */
export function statement<Row extends Upgradable>(
  table: string,
  key: Partial<Row>,
  write: Write<Row>,
  encode: (column: keyof Row & string, value: unknown) => unknown = (_, value) => value,
): Statement {
  const values: unknown[] = [];
  const bind = (row: Partial<Row>, how: (column: string, parameter: string) => string): string[] =>
    (Object.keys(row) as (keyof Row & string)[]).map((column) => {
      values.push(encode(column, row[column]));
      return how(`"${column.replaceAll('"', '""')}"`, `$${values.length}`);
    });
  const set = bind(write.columns, (column, value) => `${column} = ${value}`);
  if (set.length === 0) {
    throw new RangeError("nothing is to be written");
  }
  const same = [
    ...bind(key, (column, value) => `t.${column} = ${value}`),
    ...bind(write.where, (column, value) => `t.${column} is not distinct from ${value}`),
  ];
  return { text: `update ${table} as t set ${set.join(", ")} where ${same.join(" and ")}`, values };
}

/** The place of the first upgrade that a row lacks; behind the last one where it lacks none. */
function firstPending<Row extends Upgradable>(row: Row, upgrades: readonly Upgrade<Row>[]): number {
  const first = upgrades.findIndex((upgrade) => !(row.applied_upgrades ?? []).includes(upgrade.name));
  return first < 0 ? upgrades.length : first;
}
