/** A row of a table whose rows remember their upgrades. */
export interface Upgradable {
  readonly applied_upgrades: readonly string[] | null;
}

/** An upgrade that application code does. */
export interface Upgrade<Row extends Upgradable> {
  /** Its name, as it was registered with `migrator.register_upgrade`. */
  readonly name: string;
  /** The columns that it writes, made from the row with all earlier upgrades applied. Depends on nothing else. */
  readonly apply: (row: Readonly<Row>) => Partial<Row>;
}

/** A row as it is with its upgrades applied in memory. */
export interface Effective<Row extends Upgradable> {
  /** The row to work with. Its `applied_upgrades` has the names of what was applied. */
  readonly row: Row;
  /** Columns that the upgrades gave another value, and `applied_upgrades`; empty where nothing was pending. */
  readonly upgraded: Partial<Row>;
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
  const first = upgrades.findIndex((upgrade) => !names.includes(upgrade.name));
  if (first < 0) {
    return { row, upgraded: {} };
  }
  let upgraded: Partial<Row> = {};
  for (const upgrade of upgrades.slice(first)) {
    upgraded = { ...upgraded, ...upgrade.apply({ ...row, ...upgraded }) };
    if (!names.includes(upgrade.name)) {
      names.push(upgrade.name);
    }
  }
  upgraded = { ...upgraded, applied_upgrades: names };
  return { row: { ...row, ...upgraded }, upgraded };
}

/**
 * The columns to write when an object is saved: what the application changed, together with what the upgrades changed and
 * their names, in one UPDATE. So the database can tell that whoever wrote the inputs knew of the outputs.
 *
 * Nothing where the application changed nothing: reading a row is no reason to write it.
 */
export function toWrite<Row extends Upgradable>(effective: Effective<Row>, changes: Partial<Row>): Partial<Row> {
  return Object.keys(changes).length === 0 ? {} : { ...effective.upgraded, ...changes };
}
