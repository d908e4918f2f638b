//! The calls for upgrades of rows. A table is named by its oid, which was looked up once with the user's search_path.

use super::Store;
use super::change::Event;
use super::upgrade::{Upgrade, UpgradeFailure, UpgradeFilter, UpgradeOrder, UpgradeStep};
use crate::db::Trouble;
use crate::db::session::Parameter;
use tokio_postgres::types::Type;

/// `$1`, an oid as a number, as a table.
const TABLE: &str = "$1::int8::oid::regclass";
/// A row's table, if it is still there. A number is taken for an oid by some versions of to_regclass.
const OID: &str = "(select c.oid::int8 from pg_class c where c.oid = to_regclass(u.relation))";

/// The rows of one table, where one was asked for.
fn filter() -> String {
    format!("($1::int8 is null or {OID} = $1)")
}

impl Store {
    /// What is registered, in order of application; not what was retired and is gone from all rows.
    pub async fn upgrades(&self, of: UpgradeFilter<'_>) -> Result<Vec<Upgrade>, Trouble> {
        let sql = format!(
            "select (to_jsonb(u) || jsonb_build_object('eta_seconds', extract(epoch from u.eta), \
             'relation_oid', {OID}))::text from migrator.upgrades u \
             where {} and ($2::text is null or u.name = $2) order by u.relation, u.ordinal, u.registered_at",
            filter()
        );
        self.session.rows(&sql, &[(&of.table, Type::INT8), (&of.name, Type::TEXT)]).await
    }

    /// Rows that are set aside, those of the last failure first: how many, and at most a thousand of them.
    pub async fn upgrade_failures(
        &self,
        of: UpgradeFilter<'_>,
        key: Option<&str>,
    ) -> Result<(i64, Vec<UpgradeFailure>), Trouble> {
        let rows = format!(
            "from migrator.upgrade_failures u where {} and ($2::text is null or u.upgrade = $2) and ($3::text is null \
             or u.key = (select jsonb_object_agg(k.key, k.value) from jsonb_each_text($3::jsonb) k))",
            filter()
        );
        let with: [Parameter<'_>; 3] = [(&of.table, Type::INT8), (&of.name, Type::TEXT), (&key, Type::TEXT)];
        let count = self.session.row(&format!("select to_jsonb(count(*))::text {rows}"), &with).await?;
        let some = format!("select to_jsonb(u)::text {rows} order by u.seen_at desc, u.key::text limit 1000");
        Ok((count, self.session.rows(&some, &with).await?))
    }

    /// One bounded step for a table. `worker` names the one who calls, whatever its connection.
    pub async fn step(&self, table: i64, worker: &str) -> Result<UpgradeStep, Trouble> {
        let sql = format!("select to_jsonb(r)::text from migrator.step({TABLE}, $2) r");
        self.session.row(&sql, &[(&table, Type::INT8), (&worker, Type::TEXT)]).await
    }

    /// Calls `pause_upgrades`, `resume_upgrades` or `verify_upgrades`.
    pub async fn upgrade_order(&self, order: UpgradeOrder, table: i64) -> Result<(), Trouble> {
        self.session.call(&format!("select migrator.{}({TABLE})", order.as_str()), &[(&table, Type::INT8)]).await
    }

    /// Tries rows that were set aside again, now; how many are not set aside any more.
    pub async fn retry_failed(&self, table: i64, name: Option<&str>, key: Option<&str>) -> Result<i64, Trouble> {
        let sql = format!("select to_jsonb(migrator.retry_failed({TABLE}, $2, $3::jsonb))::text");
        let with: [Parameter<'_>; 3] = [(&table, Type::INT8), (&name, Type::TEXT), (&key, Type::TEXT)];
        self.session.row(&sql, &with).await
    }

    /// Rows that were set aside keep what they have and count as upgraded; how many.
    pub async fn waive_failed(
        &self,
        table: i64,
        name: &str,
        key: Option<&str>,
        reason: Option<&str>,
    ) -> Result<i64, Trouble> {
        let sql = format!("select to_jsonb(migrator.waive_failed({TABLE}, $2, $3::jsonb, $4))::text");
        let with: [Parameter<'_>; 4] =
            [(&table, Type::INT8), (&name, Type::TEXT), (&key, Type::TEXT), (&reason, Type::TEXT)];
        self.session.row(&sql, &with).await
    }

    /// Makes an upgrade's name mean nothing; `at once` or `in batches`.
    pub async fn retire_upgrade(&self, table: i64, name: &str, incomplete: bool) -> Result<String, Trouble> {
        let sql = format!("select to_jsonb(migrator.retire_upgrade({TABLE}, $2, $3))::text");
        let with: [Parameter<'_>; 3] = [(&table, Type::INT8), (&name, Type::TEXT), (&incomplete, Type::BOOL)];
        self.session.row(&sql, &with).await
    }

    /// What happened to a table's upgrades after the event of this number.
    pub async fn upgrade_log(&self, table: i64, after: i64) -> Result<Vec<Event>, Trouble> {
        let sql = format!(
            "select to_jsonb(u)::text from migrator.upgrade_events u where {} and u.id > $2 order by u.id",
            filter()
        );
        self.session.rows(&sql, &[(&table, Type::INT8), (&after, Type::INT8)]).await
    }
}
