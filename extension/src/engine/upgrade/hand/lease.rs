//! What is kept of rows that are handed out: leases, and how far the handing out is. Runs as the extension.

use super::select::{Found, REST};
use super::{Desk, Key};
use crate::catalog::attempt::attempt;
use crate::catalog::{role, spi};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::plain;
use pgrx::JsonB;
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::HashMap;

/// How far rows were handed out.
#[derive(Debug, Deserialize)]
pub struct Cursor {
    pub key_after: Option<Key>,
    /// A whole pass found nothing, not long ago by what it cost.
    pub idle: bool,
    pub marked_after: Option<Key>,
    /// A pass over rows that have the name came to the end within the time of a lease.
    pub marked_over: bool,
}

/// A free row, by its place among those that were asked for.
#[derive(Debug, Deserialize)]
pub struct Free {
    pub n: usize,
    /// It was handed out before, and what came back was written.
    pub again: bool,
}

/// What a token is worth.
#[derive(Debug, Deserialize)]
pub struct Taken {
    pub n: usize,
    /// There is a lease of the row.
    pub there: bool,
    /// Nobody else has that lease in hand.
    pub locked: bool,
    /// It is the token's.
    pub ours: bool,
    /// What came back for it was written already.
    pub applied: bool,
    pub image: i64,
    pub marked: bool,
}

/// Leases come and go faster than they are counted: plans that do not read all of them, whatever the statistics say.
const BY_INDEX: [(&str, &str); 4] =
    [("enable_seqscan", "off"), ("enable_hashjoin", "off"), ("enable_mergejoin", "off"), ("enable_bitmapscan", "off")];

fn fetch<T: DeserializeOwned>(sql: &str, args: &[DatumWithOid<'_>]) -> Result<Vec<T>, Failure> {
    role::with_settings(&BY_INDEX, || spi::fetch(sql, args))
}

fn execute(sql: &str, args: &[DatumWithOid<'_>]) -> Result<u64, Failure> {
    role::with_settings(&BY_INDEX, || spi::execute(sql, args))
}

/// The lease of a row `g`, held until the end of the transaction; none where somebody else holds it.
const LOCKED: &str = "select o.* from migrator.upgrade_lease o where o.relation = $1 and o.upgrade = $2 and o.key = g.key for update skip locked";
/// Whether a row `g` has a lease. The limit keeps the planner from reading all leases into a hash table instead.
const THERE: &str = "select true as there from migrator.upgrade_lease o where o.relation = $1 and o.upgrade = $2 and o.key = g.key limit 1";

/// How long it is remembered that what came back was written, for one who lost the answer and asks again.
const REMEMBERED: &str = "interval '5 minutes'";
/// How long a transaction that has handed out rows and is still open is waited for.
const PATIENCE: &str = "30s";

impl Desk<'_> {
    /// Takes the cursor until the end of the transaction: rows are handed out by one at a time.
    pub(super) fn cursor(&self, lease_ms: i64) -> Result<Cursor, Failure> {
        let take = || {
            spi::fetch_optional(
                "select c.key_after, coalesce(c.idle_until > pg_catalog.clock_timestamp(), false) as idle, c.marked_after, \
                 coalesce(c.marked_ended + pg_catalog.make_interval(secs => $2 / 1000.0) > pg_catalog.clock_timestamp(), false) as marked_over \
                 from migrator.upgrade_cursor c where c.upgrade = $1 for update",
                &[self.upgrade.id.into(), lease_ms.into()],
            )
        };
        let taken = attempt(|| {
            role::with_settings(&[("lock_timeout", PATIENCE)], || {
                if let Some(cursor) = take()? {
                    return Ok(Some(cursor));
                }
                spi::execute(
                    "insert into migrator.upgrade_cursor (upgrade) values ($1) on conflict do nothing",
                    &[self.upgrade.id.into()],
                )?;
                take()
            })
        });
        match taken {
            Ok(Some(cursor)) => Ok(cursor),
            Ok(None) => Err(Failure::new(code::INTERNAL, "a cursor that was just made is not there")),
            Err(failure) if failure.code == code::LOCK_NOT_AVAILABLE => Err(Failure::new(
                code::LOCK_NOT_AVAILABLE,
                format!(
                    "another session has handed out rows for upgrade {} of table {} in a transaction that is still open",
                    plain(&self.registered.name),
                    self.table.relation.name.plain()
                ),
            )
            .detail("Nothing was changed.")
            .hint("Commit after migrator.select_batch, and do the work between that and migrator.mark_applied outside a transaction. Then call this again.")),
            Err(failure) => Err(failure),
        }
    }

    /// Keeps how far rows that lack the name were handed out, and whether there is any sense in looking everywhere soon.
    pub(super) fn keep(&self, after: Option<&Key>, found: Found, done: i64) -> Result<(), Failure> {
        let (looked, rest) = match found {
            Found::Some => (true, None),
            Found::NothingFor(took) => (true, Some(i64::try_from((took * REST).as_millis()).unwrap_or(i64::MAX))),
            Found::NothingHere => (false, None),
        };
        spi::execute(
            "update migrator.upgrade_cursor set key_after = $2, rows_done = rows_done + $3, \
             idle_until = case when $4 then pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $5 / 1000.0) else idle_until end \
             where upgrade = $1",
            &[self.upgrade.id.into(), after.cloned().into(), done.into(), looked.into(), rest.into()],
        )
        .map(|_| ())
    }

    /// Nothing is left to hand out: the next step looks at every row whether that was all, if rows came back since the last look.
    pub(super) fn look_again(&self) -> Result<(), Failure> {
        spi::execute(
            "update migrator.upgraded u set verified_at = '-infinity' where u.relation = $1 and u.verified_at is not null \
               and exists (select from migrator.upgrade_lease l where l.relation = $1 and l.upgrade = $2 and l.applied and l.until > u.verified_at) \
               and not exists (select from migrator.upgrade_lease l where l.relation = $1 and l.upgrade = $2 and not l.applied and l.until > pg_catalog.clock_timestamp()) \
               and u.relation in (select o.relation from migrator.upgraded o where o.relation = $1 for no key update skip locked)",
            &[self.relation().into(), self.upgrade.id.into()],
        )
        .map(|_| ())
    }

    /// The same for rows that have it.
    pub(super) fn keep_marked(&self, after: Option<&Key>, ended: bool, done: i64) -> Result<(), Failure> {
        spi::execute(
            "update migrator.upgrade_cursor set marked_after = $2, rows_done = rows_done + $4, \
             marked_ended = case when $3 then pg_catalog.clock_timestamp() end where upgrade = $1",
            &[self.upgrade.id.into(), after.cloned().into(), ended.into(), done.into()],
        )
        .map(|_| ())
    }

    /// Forgets leases that ended well some time ago, a bounded number; returns how many.
    pub(super) fn forget(&self) -> Result<i64, Failure> {
        #[derive(Deserialize)]
        struct Old {
            key: Value,
        }
        let sql = format!(
            "select l.key from migrator.upgrade_lease l where l.upgrade = $1 and l.applied and l.until < (select pg_catalog.clock_timestamp()) - {REMEMBERED} \
             order by l.until limit 5000 for update skip locked"
        );
        let old: Vec<Old> = fetch(&sql, &[self.upgrade.id.into()])?;
        let keys: Vec<Value> = old.into_iter().map(|old| old.key).collect();
        self.drop(&keys)?;
        Ok(i64::try_from(keys.len()).unwrap_or(i64::MAX))
    }

    /// Rows to begin with, wherever the cursor is: their lease ran out, or they failed some time ago.
    pub(super) fn due(&self, limit: i64) -> Result<Vec<Key>, Failure> {
        #[derive(Deserialize)]
        struct Due {
            key: Value,
        }
        #[derive(Deserialize)]
        struct Sorted {
            key: Key,
        }
        let sql = format!(
            "select d.key from (select l.key, l.until as since from migrator.upgrade_lease l \
                 where l.upgrade = $2 and not l.applied and l.until <= (select pg_catalog.clock_timestamp()) \
               union select f.key, f.seen_at from migrator.upgrade_failure f where f.relation = $1 and f.upgrade = $2 and not {}) d \
             group by d.key order by min(d.since), d.key limit $3",
            rests("f")
        );
        let due: Vec<Due> = fetch(&sql, &[self.relation().into(), self.upgrade.id.into(), limit.into()])?;
        if due.is_empty() {
            return Ok(vec![]);
        }
        let keys: Vec<Key> = due.into_iter().map(|due| self.key(&due.key)).collect();
        let sorted: Vec<Sorted> = self.keyset.query(&self.keyset.table().sorted(), &[JsonB(json!(keys)).into()])?;
        Ok(sorted.into_iter().map(|sorted| sorted.key).collect())
    }

    /// Which of these rows nobody has in hand, in order. Their old leases are held until the end of the transaction.
    pub(super) fn free(&self, keys: &[Key], applied: bool) -> Result<Vec<Free>, Failure> {
        let names: Vec<Value> = keys.iter().map(|key| self.name(key)).collect();
        let rests = if applied { "false".to_owned() } else { rests("f") };
        let sql = format!(
            "select g.n - 1 as n, coalesce(l.applied, false) as again from pg_catalog.jsonb_array_elements($3) with ordinality g (key, n) \
             left join lateral ({LOCKED}) l on true left join lateral ({THERE}) t on true \
             left join lateral (select true as rests from migrator.upgrade_failure f \
               where f.relation = $1 and f.upgrade = $2 and f.key = g.key and {rests} limit 1) r on true \
             where r.rests is null and case when l.key is not null then l.applied or l.until <= pg_catalog.clock_timestamp() else t.there is null end \
             order by g.n"
        );
        fetch(&sql, &[self.relation().into(), self.upgrade.id.into(), JsonB(json!(names)).into()])
    }

    /// Lends rows out; the tokens, in their order.
    pub(super) fn lend(
        &self,
        rows: &[(&Key, i64)],
        until: TimestampWithTimeZone,
        marked: bool,
    ) -> Result<Vec<String>, Failure> {
        #[derive(Deserialize)]
        struct Lent {
            key: Value,
            token: String,
        }
        let names: Vec<Value> = rows.iter().map(|(key, _)| self.name(key)).collect();
        let given: Vec<Value> =
            names.iter().zip(rows).map(|(name, (_, image))| json!({"key": name, "image": image})).collect();
        let lent: Vec<Lent> = fetch(
            "with lent as (insert into migrator.upgrade_lease as l (relation, upgrade, key, image, until, marked) \
               select $1, $2, g.key, g.image, $4, $5 from pg_catalog.jsonb_to_recordset($3) as g (key jsonb, image bigint) \
               on conflict (relation, upgrade, key) do update set token = pg_catalog.gen_random_uuid(), image = excluded.image, \
                 until = excluded.until, marked = excluded.marked, applied = false \
               returning l.key, l.token) \
             select pg_catalog.to_jsonb(t) from lent t",
            &[self.relation().into(), self.upgrade.id.into(), JsonB(json!(given)).into(), until.into(), marked.into()],
        )?;
        let tokens: HashMap<String, String> = lent.into_iter().map(|lent| (lent.key.to_string(), lent.token)).collect();
        names
            .iter()
            .map(|name| tokens.get(&name.to_string()).cloned())
            .collect::<Option<_>>()
            .ok_or_else(|| Failure::new(code::INTERNAL, "a lease that was just made is not there"))
    }

    /// What these tokens are worth. Leases that are there are held until the end of the transaction.
    pub(super) fn take(&self, given: &[(usize, &Key, &str)]) -> Result<Vec<Taken>, Failure> {
        let given: Vec<Value> =
            given.iter().map(|(n, key, token)| json!({"n": n, "key": self.name(key), "token": token})).collect();
        let sql = format!(
            "select g.n, l.key is not null as locked, coalesce(l.token = g.token, false) as ours, coalesce(l.applied, false) as applied, \
               coalesce(l.image, 0) as image, coalesce(l.marked, false) as marked, l.key is not null or t.there is not null as there \
             from pg_catalog.jsonb_to_recordset($3) as g (n int, key jsonb, token uuid) \
             left join lateral ({LOCKED}) l on true left join lateral ({THERE}) t on true"
        );
        fetch(&sql, &[self.relation().into(), self.upgrade.id.into(), JsonB(json!(given)).into()])
    }

    /// What came back was written.
    pub(super) fn applied(&self, keys: &[Value]) -> Result<(), Failure> {
        self.of_leases("update migrator.upgrade_lease l set applied = true where", keys)?;
        self.forget_failures(keys)
    }

    /// Nothing is wrong with these rows any more, or they are gone.
    pub(super) fn forget_failures(&self, keys: &[Value]) -> Result<(), Failure> {
        self.of_leases("delete from migrator.upgrade_failure l where", keys)
    }

    /// The rows can be handed out again at once, and the tokens are worth nothing any more.
    pub(super) fn back(&self, keys: &[Value]) -> Result<(), Failure> {
        self.of_leases(
            "update migrator.upgrade_lease l set until = pg_catalog.clock_timestamp(), token = pg_catalog.gen_random_uuid() where",
            keys,
        )
    }

    /// The rows are gone, or do not need anything.
    pub(super) fn drop(&self, keys: &[Value]) -> Result<(), Failure> {
        self.of_leases("delete from migrator.upgrade_lease l where", keys)
    }

    fn of_leases(&self, what: &str, keys: &[Value]) -> Result<(), Failure> {
        if keys.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "{what} l.relation = $1 and l.upgrade = $2 and l.key in (select pg_catalog.jsonb_array_elements($3))"
        );
        execute(&sql, &[self.relation().into(), self.upgrade.id.into(), JsonB(json!(keys)).into()]).map(|_| ())
    }
}

/// Whether a row that failed is left alone for a while: 10 seconds the first time, twice as long each time after, an hour at most. A
/// worker that takes what there is until there is nothing would otherwise never end. No attempts: somebody asked for another one.
fn rests(failure: &str) -> String {
    format!(
        "({failure}.attempts > 0 and {failure}.seen_at + least(interval '10 s' * 2 ^ least({failure}.attempts - 1, 12), interval '1 hour') \
         > pg_catalog.clock_timestamp())"
    )
}
