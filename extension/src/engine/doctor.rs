//! What is wrong with this server, and the call that mends it.

use crate::catalog::spi;
use migrator_core::failure::Failure;
use serde::Deserialize;

/// One finding.
#[derive(Debug, Clone, Deserialize)]
pub struct Finding {
    /// `error`, `warning` or `info`.
    pub severity: String,
    /// The object.
    pub subject: String,
    /// What is wrong with it.
    pub problem: String,
    /// The call that mends it.
    pub remedy: String,
}

/// All findings, worst first. Of changes, those that the caller may see.
pub fn examine(caller: pgrx::pg_sys::Oid) -> Result<Vec<Finding>, Failure> {
    let sql = format!(
        "select * from (with seen as materialized (select h.* from migrator.status h join pg_catalog.pg_class t on t.oid = case when h.phase = 'swapped' then h.shadow else h.live end \
           where pg_catalog.pg_has_role($1, t.relowner, 'usage') or pg_catalog.pg_has_role($1, 'pg_monitor', 'usage')) \
         select 'error' as severity, pg_catalog.format('change %s of %s', h.change, h.relation) as subject, \
                coalesce(h.waits_for, 'blocked') as problem, h.next_step as remedy from seen h where h.state = 'blocked' \
         union all select 'warning', pg_catalog.format('change %s of %s', h.change, h.relation), \
                pg_catalog.format('%s row(s) do not fit the other shape and stand in the way of swap or rollback', h.bad_rows), \
                'select * from migrator.bad_rows;' from seen h where h.bad_rows > 0 \
         union all select 'warning', pg_catalog.format('change %s of %s', h.change, h.relation), \
                pg_catalog.format('nothing has happened for %s in state %s', pg_catalog.date_trunc('minute', pg_catalog.clock_timestamp() - e.at), h.phase), \
                'Start the agent (migrator agent), or drive it yourself: ' || h.next_step \
           from seen h, lateral (select max(x.at) as at from migrator.event x where x.change = h.change) e \
          where h.phase in ('created', 'syncing', 'copying', 'indexing', 'catching_up', 'verifying') and h.state not in ('paused', 'blocked') \
            and e.at < pg_catalog.clock_timestamp() - interval '1 hour' \
         union all select 'error', pg_catalog.format('schema %I', n.nspname), 'a change that is over, or was never recorded here, left it behind', \
                pg_catalog.concat_ws(' ', case when i.drops is not null then \
                  'Nobody keeps in step what is in it. Look at it, keep what you need (alter table … set schema …), then, one by one, for each refuses while something depends on it:' end, \
                  i.drops, pg_catalog.format('drop schema %I;', n.nspname)) \
           from pg_catalog.pg_namespace n, lateral (select pg_catalog.string_agg(pg_catalog.format('drop %s %s;', case c.relkind \
                  when 'v' then 'view' when 'm' then 'materialized view' when 'S' then 'sequence' when 'f' then 'foreign table' else 'table' end, c.oid::pg_catalog.regclass), ' ' \
                  order by c.relkind in ('r', 'p'), c.oid) as drops \
                from pg_catalog.pg_class c where c.relnamespace = n.oid and c.relkind in ('r', 'p', 'v', 'm', 'S', 'f') and not c.relispartition \
                  and not exists (select from pg_catalog.pg_depend d where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objid = c.oid and d.deptype in ('a', 'i') and c.relkind = 'S')) i \
          where n.nspname ~ '^migrator_(shadow|backup)_[0-9]{{1,18}}$' \
            and not exists (select from migrator.change c where c.state not in ('finished', 'cancelled') and c.id = pg_catalog.substring(n.nspname, '[0-9]+')::pg_catalog.int8) \
         union all select 'error', pg_catalog.format('trigger %I on %s', t.tgname, t.tgrelid::pg_catalog.regclass), 'it captures writes for a change that is over', \
                pg_catalog.format('drop trigger %I on %s;', t.tgname, t.tgrelid::pg_catalog.regclass) \
           from pg_catalog.pg_trigger t where t.tgname ~ '^migrator_capture_[0-9]{{1,18}}_' and not t.tgisinternal \
            and not exists (select from migrator.change c where c.state not in ('finished', 'cancelled') and c.id = pg_catalog.substring(t.tgname, '[0-9]+')::pg_catalog.int8) \
         union all select 'error', 'the library', pg_catalog.format('the library is version {version}, the SQL objects are version %s', x.extversion), 'alter extension migrator update;' \
           from pg_catalog.pg_extension x where x.extname = 'migrator' and x.extversion <> '{version}' \
         union all select 'info', pg_catalog.format('standby %s', coalesce(nullif(r.application_name, ''), r.client_addr::pg_catalog.text)), \
                'while capture is on, writes after a failover need the library there', 'Make sure that the extension''s files are installed on it.' \
           from pg_catalog.pg_stat_replication r where exists (select from seen) \
         union all select 'warning', pg_catalog.format('prepared transaction %s', p.gid), \
                pg_catalog.format('it is %s old and %s', pg_catalog.date_trunc('second', pg_catalog.clock_timestamp() - p.prepared), \
                  coalesce('holds ' || k.tables || ', which no swap gets past', 'may hold locks that a swap needs')), \
                pg_catalog.format('Ask whose it is, then: commit prepared %L; or: rollback prepared %L;', p.gid, p.gid) \
           from pg_catalog.pg_prepared_xacts p, lateral (select pg_catalog.string_agg(distinct h.relation, ', ') as tables from seen h join pg_catalog.pg_locks l \
                  on l.locktype = 'relation' and l.pid is null and l.relation in (h.live, h.shadow) \
                  join pg_catalog.pg_locks x on x.locktype = 'transactionid' and x.pid is null and x.granted and x.transactionid = p.transaction \
                    and x.virtualtransaction = l.virtualtransaction \
                 where l.database = (select d.oid from pg_catalog.pg_database d where d.datname = p.database)) k \
          where p.database = pg_catalog.current_database() and exists (select from seen) \
            and (k.tables is not null or p.prepared < pg_catalog.clock_timestamp() - interval '1 minute') \
         union all select 'warning', pg_catalog.format('signal %s', g.signal), \
                pg_catalog.format('it %s work since %s: %s', case g.verdict when 'hold' then 'holds' else 'slows down' end, g.since::pg_catalog.timestamptz(0), g.reason), g.remedy \
           from migrator._signals() g where g.verdict <> 'go' and g.sampled_at > pg_catalog.clock_timestamp() - interval '1 minute' and exists (select from seen) \
         union all select * from ({upgrades}) u \
         ) q order by case q.severity when 'error' then 0 when 'warning' then 1 else 2 end, q.subject",
        version = env!("CARGO_PKG_VERSION"),
        upgrades = crate::engine::upgrade::findings::SQL,
    );
    // On a standby too: whether the library is there shows only there.
    spi::fetch_read_only(&sql, &[caller.into()])
}
