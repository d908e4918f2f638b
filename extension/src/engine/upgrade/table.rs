//! A table with upgrades: which tables can have them, and what is known of one.

use super::numbers;
use crate::catalog::attempt::attempt;
use crate::catalog::definition::Column;
use crate::catalog::lock::{self, Mode, Wanted};
use crate::catalog::relation::Relation;
use crate::catalog::{role, spi};
use crate::engine::shape::{checks, keys};
use crate::guard::{self, Refusal};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, literal, plain};
use migrator_core::upgrade::{COLUMN, Definition, Upgrade};
use pgrx::pg_sys;
use serde::Deserialize;
use serde_json::Value;

/// A row of `migrator.upgraded`, and the table as it is now.
#[derive(Debug, Clone)]
pub struct Upgraded {
    pub relation: Relation,
    pub key: Vec<Ident>,
    pub state: State,
}

/// The columns of `migrator.upgraded` that steps decide by.
#[derive(Debug, Clone, Deserialize)]
pub struct State {
    pub generation: i32,
    pub view_schema: Option<Ident>,
    pub view_name: Option<Ident>,
    pub batch_size: Option<i32>,
    pub cleanup_batch_size: Option<i32>,
    pub target_ms: i32,
    pub paused: bool,
    pub blocked: Option<String>,
    pub blocked_hint: Option<String>,
    /// The server's load holds it, as far as was noted.
    pub held: bool,
    pub sweep: i64,
    pub sweep_kind: Option<String>,
    pub sweep_generation: Option<i32>,
    pub rows_total: i64,
    pub rows_vacuumed: i64,
    /// Whether all rows were looked at since the definitions changed last.
    pub verified: bool,
    /// Whether that is long ago, by what it cost.
    pub verify_due: bool,
    pub lacking: Option<i64>,
    /// Rows with names that nobody registered here, by the last look at all rows.
    pub strangers: Option<i64>,
    /// Whether the guard may have left rows to batches since the last look at all rows began.
    pub may_be_left: bool,
    /// What its view was made of last.
    pub view_query: Option<String>,
    /// Whether `applied_upgrades` was made here.
    pub column_added: bool,
    key: Vec<Ident>,
}

/// A row of `migrator.upgrade`.
#[derive(Debug, Clone, Deserialize)]
pub struct Registered {
    pub id: i64,
    pub name: String,
    pub ordinal: i32,
    pub kind: String,
    pub state: String,
    pub definition: Upgrade,
    /// Where its outputs, and behind them the names, were when that was looked at last; none where it is not known.
    pub numbers: Option<Vec<i16>>,
    /// The settings that were in force at its registration.
    pub settings: Vec<(String, String)>,
}

impl Upgraded {
    /// The table with these upgrades, if it has any.
    pub fn find(oid: u32) -> Result<Option<Upgraded>, Failure> {
        let state: Option<State> = spi::fetch_optional(
            "select u.generation, u.view_schema, u.view_name, u.batch_size, u.cleanup_batch_size, u.target_ms, \
             u.paused_at is not null as paused, u.blocked, u.blocked_hint, u.held_since is not null as held, u.sweep, u.sweep_kind, u.sweep_generation, u.key, u.rows_total, u.rows_vacuumed, u.verified_at is not null as verified, u.lacking, u.strangers, u.column_added, u.may_be_left, u.view_query, \
             coalesce(u.verified_at + greatest(interval '1 minute', 20 * u.verify_took) < pg_catalog.clock_timestamp(), true) as verify_due \
             from migrator.upgraded u where u.relation = $1",
            &[pg_sys::Oid::from(oid).into()],
        )?;
        let Some(state) = state else { return Ok(None) };
        Ok(Some(Upgraded { relation: Relation::get(oid)?, key: state.key.clone(), state }))
    }

    /// The same row as it is now.
    pub fn again(&self) -> Result<Upgraded, Failure> {
        Self::get(self.relation.oid)
    }

    /// Takes the table's row until the end of the transaction, or says that it is taken: who begins and ends sweeps does it alone.
    pub fn alone(&self) -> Result<bool, Failure> {
        let rows = spi::execute(
            "select from migrator.upgraded u where u.relation = $1 for no key update skip locked",
            &[pg_sys::Oid::from(self.relation.oid).into()],
        )?;
        Ok(rows == 1)
    }

    /// Takes the table's row until the end of the transaction, and gives the table as it is then. Whoever changes what is registered
    /// begins with it, so the definitions that he reads are those that he writes over.
    pub fn held(&self) -> Result<Upgraded, Failure> {
        take_row(&self.relation)?;
        self.again()
    }

    /// The same, or a refusal.
    pub fn get(oid: u32) -> Result<Upgraded, Failure> {
        if let Some(table) = Self::find(oid)? {
            return Ok(table);
        }
        let name = Relation::find(oid).ok().flatten().map_or(oid.to_string(), |relation| relation.name.plain());
        if let Some(now) = exchanged_for(oid)? {
            let now = Relation::get(now)?.name.plain();
            return Err(exchanged(&now, &format!("Its upgrades have moved on from {name} with a swap or a rollback.")));
        }
        Err(Failure::new(code::UNDEFINED_OBJECT, format!("table {name} has no upgrades"))
            .detail("Nothing was changed.")
            .hint("select * from migrator.upgrades; lists what is registered; select migrator.register_upgrade(…) registers one."))
    }

    /// The table as it is when its lock is granted, or a refusal: what waited behind a swap or a rollback has the lock of the
    /// table that was put aside, in another schema. Where nothing was registered before, nothing has moved on either.
    pub fn still_there(&self) -> Result<Relation, Failure> {
        let now = Relation::get(self.relation.oid)?;
        if now.name.schema == self.relation.name.schema {
            return Ok(now);
        }
        let detail = format!("The one that was meant is {} by now.", now.name.plain());
        Err(exchanged(&self.relation.name.plain(), &detail))
    }

    /// Holds the table, as a reader does, before anything that is noted of its upgrades is read or locked: an exchange holds the
    /// table first too, and then moves all that to the other one. So whoever works on rows neither stands in its way with our
    /// own rows while he waits for the table, nor goes on with a table that is not the application's any more.
    pub fn hold(oid: u32) {
        lock::relation(Wanted { relation: oid, mode: Mode::AccessShare });
    }

    /// The same for a caller who may change the table. `work` runs as the extension.
    pub fn enter<T>(oid: u32, work: impl FnOnce(Upgraded) -> Result<T, Failure>) -> Result<T, Failure> {
        let caller = role::caller();
        role::as_extension(|| {
            let table = Upgraded::get(oid)?;
            check_owner(&table.relation, caller)?;
            work(table)
        })
    }

    /// Its upgrades that are not gone, in order; `retiring` ones come with them.
    pub fn registered(&self) -> Result<Vec<Registered>, Failure> {
        registered(self.relation.oid)
    }

    /// The upgrade of this name that is not gone.
    pub fn named(&self, name: &str) -> Result<Registered, Failure> {
        self.registered()?.into_iter().find(|upgrade| upgrade.name == name).ok_or_else(|| {
            Failure::new(
                code::UNDEFINED_OBJECT,
                format!("table {} has no upgrade {}", self.relation.name.plain(), plain(name)),
            )
            .detail("Nothing was changed.")
            .hint("select name, state from migrator.upgrades; lists what is registered.")
        })
    }

    /// What the guard has to know now.
    pub fn definition(&self) -> Result<Definition, Failure> {
        Ok(define(self.key.clone(), &self.registered()?))
    }

    /// Runs `work` as the table's owner, restricted, under these settings.
    pub fn as_owner<T>(&self, settings: &[(String, String)], work: impl FnOnce() -> T) -> T {
        role::as_owner(self.relation.owner(), settings, work)
    }

    /// Writes down what happened.
    pub fn event(&self, kind: &str, message: &str, detail: Value) -> Result<(), Failure> {
        event(self.relation.oid, kind, message, detail)
    }
}

/// Takes the row of a table in `migrator.upgraded`, which may be one that another session is about to write. It is waited for a
/// while: who registers in a transaction of some length has it until the end of that.
pub fn take_row(relation: &Relation) -> Result<(), Failure> {
    let held = role::with_settings(&[("lock_timeout", "5s")], || {
        attempt(|| {
            spi::execute(
                "select from migrator.upgraded u where u.relation = $1 for no key update",
                &[pg_sys::Oid::from(relation.oid).into()],
            )
        })
    });
    held.map(|_| ()).map_err(|failure| taken(relation, failure))
}

/// The same for a table that may have no upgrades yet: then it has a row afterwards.
pub fn take_new_row(relation: &Relation) -> Result<(), Failure> {
    let made = role::with_settings(&[("lock_timeout", "5s")], || {
        attempt(|| {
            spi::execute(
                "insert into migrator.upgraded (relation, key, column_added) values ($1, '{}', false) on conflict (relation) do nothing",
                &[pg_sys::Oid::from(relation.oid).into()],
            )
        })
    });
    made.map_err(|failure| taken(relation, failure))?;
    take_row(relation)
}

fn taken(relation: &Relation, failure: Failure) -> Failure {
    if failure.code != code::LOCK_NOT_AVAILABLE {
        return failure;
    }
    Failure::new(
        code::LOCK_NOT_AVAILABLE,
        format!("another session is changing what is registered for table {}", relation.name.plain()),
    )
    .detail("It has it until the end of its transaction. Nothing was changed.")
    .hint("Call it again when that transaction has ended.")
}

/// Refuses to have the column of names come or go while the table is part of a change: that compares the columns with those of its
/// beginning, and would have to be given up, or could not be taken back any more. The caller has the table's row, and none begins meanwhile.
pub fn columns_may_change(relation: &Relation) -> Result<(), Failure> {
    checks::no_open_change(relation).map_err(|failure| {
        if failure.code == code::IN_USE {
            failure.detail(format!(
                "Column {COLUMN} would have to be added or dropped, and the change stands on the columns that there were when it began. Nothing was changed."
            ))
        } else {
            failure
        }
    })
}

fn exchanged(name: &str, detail: &str) -> Failure {
    Failure::new(code::SERIALIZATION, format!("{name} is another table since the call began"))
        .detail(format!("{detail} Nothing was changed."))
        .hint(format!("Call it again for {}.", literal(name)))
}

/// The table that took the place of this one in a change that is under way, if that one has upgrades.
fn exchanged_for(oid: u32) -> Result<Option<u32>, Failure> {
    #[derive(Deserialize)]
    struct Other {
        oid: u32,
    }
    let other: Option<Other> = spi::fetch_optional(
        "select u.relation::pg_catalog.int8 as oid from migrator.change c join migrator.upgraded u \
           on u.relation in (c.live, c.shadow) and $1 in (c.live, c.shadow) and u.relation <> $1 \
         where c.state not in ('finished', 'cancelled') limit 1",
        &[pg_sys::Oid::from(oid).into()],
    )?;
    Ok(other.map(|other| other.oid))
}

/// The table that a caller names, which cannot be NULL.
pub fn given(relation: Option<u32>) -> Result<u32, Failure> {
    relation.ok_or_else(|| {
        Failure::new(code::INVALID_PARAMETER, "no table is named").detail("Nothing was changed.").hint(
            "For instance: select migrator.register_upgrade('public.article', …); select relation, name from migrator.upgrades; lists what is registered.",
        )
    })
}

/// Writes down what happened to a table's upgrades.
pub fn event(relation: u32, kind: &str, message: &str, detail: Value) -> Result<(), Failure> {
    spi::execute(
        "insert into migrator.upgrade_event (relation, kind, message, detail) values ($1, $2, $3, $4)",
        &[pg_sys::Oid::from(relation).into(), kind.into(), message.into(), pgrx::JsonB(detail).into()],
    )
    .map(|_| ())
}

/// The upgrades of a table that are not gone, in order. One that was complete is not while a row is known that lacks it: a writer in
/// whose statement it failed may have been open when every row was looked at, and have committed since.
pub fn registered(oid: u32) -> Result<Vec<Registered>, Failure> {
    spi::fetch(
        "select g.id, g.name, g.ordinal, g.kind, case when g.state = 'complete' and (exists (select from migrator.upgrade_failure f where f.relation = g.relation and f.upgrade = g.id) \
             or exists (select from migrator.upgrade_unnoted n where n.upgrade = g.id)) then 'running' else g.state end as state, g.definition, g.numbers, g.definition -> 'settings_list' as settings \
         from migrator.upgrade g where g.relation = $1 and g.state <> 'retired' order by g.ordinal, g.id",
        &[pg_sys::Oid::from(oid).into()],
    )
}

/// The guard's definition of these upgrades: equal lists of settings are kept once.
pub fn define(key: Vec<Ident>, registered: &[Registered]) -> Definition {
    let mut definition = Definition { key, upgrades: vec![], retired: vec![], names_at: None, settings: vec![] };
    for one in registered {
        if one.state == "retiring" {
            definition.retired.push(one.name.clone());
            continue;
        }
        definition.names_at = definition.names_at.max(numbers::of_names(one));
        let settings = definition.settings.iter().position(|list| *list == one.settings).unwrap_or_else(|| {
            definition.settings.push(one.settings.clone());
            definition.settings.len() - 1
        });
        definition.upgrades.push(Upgrade { id: one.id, settings, ..one.definition.clone() });
    }
    definition
}

/// The table, and of a partitioned one its partitions, those above before those below.
pub fn tree(relation: &Relation) -> Result<Vec<u32>, Failure> {
    #[derive(Deserialize)]
    struct Member {
        oid: u32,
    }
    let mut members = vec![relation.oid];
    if relation.kind == "p" {
        let below: Vec<Member> = spi::fetch(
            "select t.relid::pg_catalog.oid::pg_catalog.int8 as oid from pg_catalog.pg_partition_tree($1::pg_catalog.oid::pg_catalog.regclass) t \
             where t.level > 0 order by t.level, t.relid::pg_catalog.oid",
            &[pg_sys::Oid::from(relation.oid).into()],
        )?;
        members.extend(below.into_iter().map(|member| member.oid));
    }
    Ok(members)
}

/// The same in SQL, of the table `$1`: `oid` and `name`. Each has its own guard, and may have triggers of its own.
pub const TREE: &str = "(select c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname) as name \
     from (select $1::oid as oid union select p.relid from pg_catalog.pg_partition_tree($1::oid::pg_catalog.regclass) p) i \
     join pg_catalog.pg_class c on c.oid = i.oid join pg_catalog.pg_namespace n on n.oid = c.relnamespace)";

/// The columns by which rows of a table are found, or a refusal.
pub fn key_of(relation: &Relation) -> Result<Vec<Ident>, Failure> {
    Ok(key_columns(relation)?.into_iter().map(|column| column.name).collect())
}

/// Whether the key that rows are found by still tells every row from every other.
pub fn key_stands(table: &Upgraded) -> Result<bool, Failure> {
    keys::stands(table.relation.oid, &table.key)
}

/// Why a sweep cannot begin: the table has another key by now, or none; or another table inherits from it, whose rows it has not.
pub fn unsweepable(table: &Upgraded) -> Result<Option<Failure>, Failure> {
    #[derive(Deserialize)]
    struct Child {
        name: String,
    }
    let child: Option<Child> = spi::fetch_optional(
        "select i.inhrelid::pg_catalog.regclass::text as name from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid \
         where i.inhparent = $1 and not c.relispartition limit 1",
        &[pg_sys::Oid::from(table.relation.oid).into()],
    )?;
    if let Some(Child { name }) = child {
        return Ok(Some(
            Failure::new(
                code::NOT_SUPPORTED,
                format!("table {name} inherits from table {}", table.relation.name.plain()),
            )
            .hint(format!(
                "Its rows are no rows of the table, and no guard is on it: alter table {name} no inherit {};",
                table.relation.name
            )),
        ));
    }
    if key_stands(table)? {
        return Ok(None);
    }
    let columns: Vec<String> = table.key.iter().map(|column| plain(column.as_str())).collect();
    Ok(Some(
        Failure::new(
            code::NOT_IN_STATE,
            format!("({}) is not a key of table {} any more", columns.join(", "), table.relation.name.plain()),
        )
        .hint("Make it one again, or another one: a primary key, or a unique index on columns that are NOT NULL. Resuming takes the one that is there."),
    ))
}

/// Has rows found by this key from now on. What names rows by another one is forgotten: the next sweep finds what failed, and what
/// was handed out is handed out again. Whether the key is another one.
pub fn renew_key(oid: u32, key: &[Ident]) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct Before {
        key: Vec<Ident>,
    }
    let relation = pg_sys::Oid::from(oid);
    let before: Before =
        spi::fetch_one("select u.key from migrator.upgraded u where u.relation = $1", &[relation.into()])?;
    if before.key == key {
        return Ok(false);
    }
    let names: Vec<String> = key.iter().map(|column| column.as_str().to_owned()).collect();
    spi::execute(
        "update migrator.upgraded set key = $2::name[], sweep_kind = null, verified_at = null, lacking = null, strangers = null where relation = $1",
        &[relation.into(), names.clone().into()],
    )?;
    if before.key.is_empty() {
        return Ok(true);
    }
    spi::execute("delete from migrator.sweep_chunk where relation = $1", &[relation.into()])?;
    // Their rows lack the name still, which nobody knows any more.
    spi::execute(
        "insert into migrator.upgrade_unnoted (relation, upgrade) select distinct f.relation, f.upgrade from migrator.upgrade_failure f where f.relation = $1",
        &[relation.into()],
    )?;
    spi::execute("delete from migrator.upgrade_failure where relation = $1", &[relation.into()])?;
    spi::execute("delete from migrator.upgrade_lease where relation = $1", &[relation.into()])?;
    spi::execute(
        "update migrator.upgrade_cursor set key_after = null, idle_until = null, marked_after = null, marked_ended = null \
         where upgrade in (select g.id from migrator.upgrade g where g.relation = $1)",
        &[relation.into()],
    )?;
    event(
        oid,
        "key_renewed",
        &format!("rows are found by ({})", names.join(", ")),
        serde_json::json!({"key": names, "before": before.key.iter().map(Ident::as_str).collect::<Vec<_>>()}),
    )?;
    Ok(true)
}

/// Names that a row is born with: those in the default of `applied_upgrades`.
pub fn born_with(relation: &Relation) -> Result<Vec<String>, Failure> {
    #[derive(Deserialize)]
    struct Default {
        text: String,
    }
    #[derive(Deserialize)]
    struct Names {
        names: Vec<Option<String>>,
    }
    let default: Option<Default> = spi::fetch_optional(
        "select pg_catalog.pg_get_expr(d.adbin, d.adrelid) as text from pg_catalog.pg_attrdef d \
         join pg_catalog.pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum where a.attrelid = $1 and a.attname = $2",
        &[pg_sys::Oid::from(relation.oid).into(), COLUMN.into()],
    )?;
    let Some(Default { text }) = default else { return Ok(vec![]) };
    let born: Names = role::as_owner(relation.owner(), &[], || {
        spi::fetch_one(&format!("select coalesce(({text})::pg_catalog.text[], '{{}}') as names"), &[])
    })?;
    Ok(born.names.into_iter().flatten().collect())
}

/// What the table or one of its partitions may refuse of an upgrade's outputs, as they are now.
pub fn refusal(relation: &Relation, upgrade: &Upgrade) -> Result<Refusal, Failure> {
    let outputs: Vec<&Ident> = upgrade.outputs().collect();
    let refusals = tree(relation)?.into_iter().map(|member| guard::refusal(member.into(), &outputs));
    Ok(refusals.max().unwrap_or(Refusal::None))
}

/// Whether the guard leaves rows of any upgrade to batches, as the table is now.
pub fn leaves_rows(table: &Upgraded) -> Result<bool, Failure> {
    for upgrade in
        table.registered()?.iter().filter(|upgrade| upgrade.kind != "application" && upgrade.state != "retiring")
    {
        if refusal(&table.relation, &upgrade.definition)? > Refusal::None {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Refuses a caller who neither owns the table nor is a member of its owner.
pub fn check_owner(relation: &Relation, caller: pg_sys::Oid) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Facts {
        owned: bool,
        owner: String,
    }
    let facts: Facts = spi::fetch_one(
        "select pg_catalog.pg_has_role($2, c.relowner, 'usage') as owned, pg_catalog.pg_get_userbyid(c.relowner) as owner from pg_catalog.pg_class c where c.oid = $1",
        &[pg_sys::Oid::from(relation.oid).into(), caller.into()],
    )?;
    if facts.owned {
        return Ok(());
    }
    Err(Failure::new(code::INSUFFICIENT_PRIVILEGE, format!("must be owner of table {}", relation.name.plain()))
        .detail("Nothing was changed.")
        .hint(format!("Call it as {} or as a member of that role.", plain(&facts.owner))))
}

/// Refuses what cannot have upgrades; the key of what can.
pub fn check(relation: &Relation, caller: pg_sys::Oid) -> Result<Vec<Column>, Failure> {
    #[derive(Deserialize)]
    struct Facts {
        system: bool,
        ours: bool,
        extension: Option<String>,
        children: bool,
        partition: bool,
        row_security: bool,
        forces_row_security: bool,
        owner: String,
    }
    check_owner(relation, caller)?;
    let facts: Facts = spi::fetch_one(
        "select n.nspname in ('pg_catalog', 'information_schema', 'pg_toast') as system, \
           n.nspname = 'migrator' or n.nspname ~ '^migrator_(shadow|backup)_[0-9]+$' as ours, \
           (select e.extname from pg_catalog.pg_depend d join pg_catalog.pg_extension e on e.oid = d.refobjid \
             where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objid = c.oid and d.deptype = 'e' \
               and d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass) as extension, \
           c.relkind = 'r' and (exists (select from pg_catalog.pg_inherits i where i.inhparent = c.oid) \
             or (not c.relispartition and exists (select from pg_catalog.pg_inherits i where i.inhrelid = c.oid))) as children, \
           c.relispartition as partition, \
           c.relrowsecurity as row_security, \
           c.relrowsecurity and c.relforcerowsecurity and not coalesce(r.rolsuper or r.rolbypassrls, false) as forces_row_security, \
           pg_catalog.pg_get_userbyid(c.relowner) as owner \
         from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace left join pg_catalog.pg_roles r on r.oid = c.relowner \
         where c.oid = $1",
        &[pg_sys::Oid::from(relation.oid).into()],
    )?;
    let name = relation.name.plain();
    let not =
        |what: &str| Failure::new(code::WRONG_OBJECT_TYPE, format!("{name} {what}")).detail("Nothing was changed.");
    match relation.kind.as_str() {
        "r" | "p" => {}
        "v" | "m" => return Err(not("is a view").hint("Register the upgrade for the table below it.")),
        "f" => return Err(not("is a foreign table").hint("Register the upgrade on the server that holds its rows.")),
        _ => return Err(not("is not a table").hint("Name the table whose rows are to be upgraded.")),
    }
    if facts.system || facts.ours {
        return Err(not("is not an application's table").hint("Name the table whose rows are to be upgraded."));
    }
    if let Some(extension) = facts.extension {
        return Err(not(&format!("belongs to extension {}", plain(&extension)))
            .hint("Its rows are the extension's business: alter extension … update."));
    }
    if relation.persistence == "t" {
        return Err(not("is a temporary table").hint("No other session sees it: use UPDATE."));
    }
    let unsupported =
        |what: &str| Failure::new(code::NOT_SUPPORTED, format!("{name} {what}")).detail("Nothing was changed.");
    if facts.partition {
        return Err(unsupported("is a partition").hint("Register the upgrade for the partitioned table above it."));
    }
    if facts.children {
        return Err(unsupported("takes part in table inheritance")
            .hint("Take it out of the tree first: alter table … no inherit …;"));
    }
    // There a view reads with its owner's rights, who is the table's.
    if cfg!(feature = "pg14") && facts.row_security {
        return Err(unsupported(
            "has row-level security, and before PostgreSQL 15 the view over its rows would show them all",
        )
        .hint(format!(
            "Upgrade to PostgreSQL 15 or later; or do without policies: alter table {} disable row level security;",
            relation.name
        )));
    }
    if facts.forces_row_security {
        let owner = plain(&facts.owner);
        return Err(unsupported(&format!(
            "forces row-level security on its owner {owner}, as whom batches run, and who would not see all rows"
        ))
        .hint(format!("alter table {} no force row level security; or alter role {owner} bypassrls;", relation.name)));
    }
    key_columns(relation)
}

fn key_columns(relation: &Relation) -> Result<Vec<Column>, Failure> {
    let name = relation.name.plain();
    keys::of_table(relation.oid)?.ok_or_else(|| {
        Failure::new(code::NOT_IN_STATE, format!("{name} has no key: no primary key, and no unique index on NOT NULL columns"))
            .detail("Without one a row cannot be found again. Nothing was changed.")
            .hint(format!(
                "Make one first: alter table {0} add primary key (…); or, without stopping writers: create unique index concurrently on {0} (…); on columns that are NOT NULL.",
                relation.name
            ))
    })
}
