//! What a change that is over must not leave in the database.

use crate::{Database, Result};
use anyhow::ensure;

/// Insists that nothing is left of changes that are over: no schema, no log, no trigger, no column, no unvalidated key.
pub async fn nothing_left_behind(database: &Database) -> Result<()> {
    let session = database.connect().await?;
    let left = session
        .rows(
            r"select 'schema ' || nspname from pg_namespace
              where nspname like 'migrator\_shadow\_%' or nspname like 'migrator\_backup\_%'
              union all
              select 'table ' || oid::regclass::text from pg_class
              where relnamespace = 'migrator'::regnamespace and relkind in ('r', 'p')
                and not exists (select from pg_depend d join pg_extension e on d.refobjid = e.oid
                                where d.classid = 'pg_class'::regclass and d.objid = pg_class.oid and d.deptype = 'e')
              union all
              select 'trigger ' || t.tgname || ' on ' || t.tgrelid::regclass::text
              from pg_trigger t join pg_proc p on p.oid = t.tgfoid
              where p.pronamespace = 'migrator'::regnamespace
                and t.tgrelid not in (select oid from pg_class where relnamespace = 'migrator'::regnamespace)
              union all
              select 'function ' || p.oid::regprocedure::text from pg_proc p
              where pronamespace = 'migrator'::regnamespace
                and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
              union all
              select 'event trigger ' || evtname from pg_event_trigger t
              where not exists (select from pg_depend d where d.classid = 'pg_event_trigger'::regclass and d.objid = t.oid and d.deptype = 'e')
              union all
              select 'open change ' || change from migrator.status",
        )
        .await?;
    let left: Vec<String> = left.into_iter().flatten().flatten().collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
