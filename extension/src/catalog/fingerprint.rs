//! A digest of all catalog rows that say what hangs on a table.

use crate::catalog::{spi, version};
use migrator_core::failure::Failure;
use pgrx::pg_sys;
use serde::Deserialize;

/// Which row versions there are, of the table, what belongs to it and what depends on it. Any DDL writes new
/// versions (their place or their transaction differs), VACUUM's and ANALYZE's updates in place do not; moving a catalog's rows
/// (VACUUM FULL) looks like a change and costs a second look, no more.
pub fn of(table: u32) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Digest {
        digest: String,
    }
    let digest: Digest = spi::fetch_one(&version::complete(DIGEST), &[pg_sys::Oid::from(table).into()])?;
    Ok(digest.digest)
}

const DIGEST: &str = "\
    select coalesce(pg_catalog.md5(pg_catalog.string_agg(pg_catalog.concat_ws(' ', r.t, r.c, r.x), ',' order by r.t, r.c)), '') as digest from ( \
    with recursive parts (oid) as ( \
        select $1 union all select c.reltype from pg_catalog.pg_class c where c.oid = $1 \
        union all select t.typarray from pg_catalog.pg_class c join pg_catalog.pg_type t on t.oid = c.reltype where c.oid = $1 \
        union all select i.indexrelid from pg_catalog.pg_index i where i.indrelid = $1 \
        union all select k.oid from pg_catalog.pg_constraint k where k.conrelid = $1 \
        union all select t.oid from pg_catalog.pg_trigger t where t.tgrelid = $1 and not t.tgisinternal \
        union all select p.oid from pg_catalog.pg_policy p where p.polrelid = $1 \
        union all select s.oid from pg_catalog.pg_statistic_ext s where s.stxrelid = $1 \
        union all select d.objid from pg_catalog.pg_depend d where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
            and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid = $1 and d.refobjsubid > 0 and d.deptype in ('a', 'i') \
    ), views (oid) as ( \
        select r.ev_class from parts p join pg_catalog.pg_depend d on d.refobjid = p.oid join pg_catalog.pg_rewrite r on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and r.oid = d.objid \
        union \
        select r.ev_class from views v join pg_catalog.pg_depend d on d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid = v.oid \
        join pg_catalog.pg_rewrite r on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and r.oid = d.objid \
    ), every (oid) as ( \
        select oid from parts union select oid from views \
    ) \
    select c.tableoid::pg_catalog.oid as t, c.ctid::pg_catalog.text as c, c.xmin::pg_catalog.text as x from pg_catalog.pg_class c join every e on e.oid = c.oid \
    union all select a.tableoid, a.ctid::pg_catalog.text, a.xmin::pg_catalog.text from pg_catalog.pg_attribute a join every e on e.oid = a.attrelid where a.attnum > 0 \
    union all select a.tableoid, a.ctid::pg_catalog.text, a.xmin::pg_catalog.text from pg_catalog.pg_attrdef a join every e on e.oid = a.adrelid \
    union all select k.tableoid, k.ctid::pg_catalog.text, k.xmin::pg_catalog.text from pg_catalog.pg_constraint k where $1 in (k.conrelid, k.confrelid) \
    union all select t.tableoid, t.ctid::pg_catalog.text, t.xmin::pg_catalog.text from pg_catalog.pg_trigger t join every e on e.oid = t.tgrelid \
    union all select p.tableoid, p.ctid::pg_catalog.text, p.xmin::pg_catalog.text from pg_catalog.pg_policy p where p.polrelid = $1 \
    union all select w.tableoid, w.ctid::pg_catalog.text, w.xmin::pg_catalog.text from pg_catalog.pg_rewrite w join every e on e.oid = w.ev_class \
    union all select i.tableoid, i.ctid::pg_catalog.text, i.xmin::pg_catalog.text from pg_catalog.pg_index i where i.indrelid = $1 \
    union all select s.tableoid, s.ctid::pg_catalog.text, s.xmin::pg_catalog.text from pg_catalog.pg_statistic_ext s where s.stxrelid = $1 \
    union all select q.tableoid, q.ctid::pg_catalog.text, q.xmin::pg_catalog.text from pg_catalog.pg_sequence q join every e on e.oid = q.seqrelid \
    union all select d.tableoid, d.ctid::pg_catalog.text, d.xmin::pg_catalog.text from pg_catalog.pg_description d join every e on e.oid = d.objoid \
    union all select d.tableoid, d.ctid::pg_catalog.text, d.xmin::pg_catalog.text from pg_catalog.pg_description d join pg_catalog.pg_constraint k on k.oid = d.objoid and k.confrelid = $1 \
    union all select d.tableoid, d.ctid::pg_catalog.text, d.xmin::pg_catalog.text from pg_catalog.pg_depend d join every e on e.oid = d.refobjid \
    union all select d.tableoid, d.ctid::pg_catalog.text, d.xmin::pg_catalog.text from pg_catalog.pg_depend d join parts e on e.oid = d.objid \
    union all select i.tableoid, i.ctid::pg_catalog.text, i.xmin::pg_catalog.text from pg_catalog.pg_inherits i where $1 in (i.inhrelid, i.inhparent) \
    union all select p.tableoid, p.ctid::pg_catalog.text, p.xmin::pg_catalog.text from pg_catalog.pg_publication p \
    union all select p.tableoid, p.ctid::pg_catalog.text, p.xmin::pg_catalog.text from @published_schemas@ p \
    union all select p.tableoid, p.ctid::pg_catalog.text, p.xmin::pg_catalog.text from pg_catalog.pg_subscription_rel p where p.srrelid = $1 \
    union all select l.tableoid, l.ctid::pg_catalog.text, l.xmin::pg_catalog.text from pg_catalog.pg_seclabel l join every e on e.oid = l.objoid \
    ) r";
