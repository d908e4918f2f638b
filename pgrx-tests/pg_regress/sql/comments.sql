-- Every object of the extension says what it is.
-- Left out: the key logs (members while a change is open), row and array types of tables and views, and what belongs to another
-- member (sequences of identity columns have comments all the same).
with member as (
    select d.classid, d.objid
      from pg_depend d join pg_extension e on d.refclassid = 'pg_extension'::regclass and e.oid = d.refobjid
     where e.extname = 'migrator' and d.deptype = 'e'
       and not (d.classid = 'pg_class'::regclass
                and (select relname from pg_class where oid = d.objid) ~ '^log_[0-9]+_[fr]_([0-9]|truncated)$')
       and not (d.classid = 'pg_type'::regclass
                and (select typrelid <> 0 or typelem <> 0 from pg_type where oid = d.objid))
)
select pg_describe_object(m.classid, m.objid, 0) as without_comment
  from member m
 where obj_description(m.objid, (select relname from pg_class where oid = m.classid)) is null
union all
select pg_describe_object(m.classid, m.objid, a.attnum)
  from member m join pg_attribute a on m.classid = 'pg_class'::regclass and a.attrelid = m.objid
  join pg_class c on c.oid = a.attrelid and c.relkind in ('r', 'p', 'v', 'm', 'c')
 where a.attnum > 0 and not a.attisdropped and col_description(a.attrelid, a.attnum) is null
 order by 1;

select obj_description('migrator'::regnamespace, 'pg_namespace') is null as schema_without_comment,
       (select obj_description(oid, 'pg_extension') from pg_extension where extname = 'migrator') is null as extension_without_comment;

-- The query above sees members of all these kinds.
select c.relname as kind, count(*) > 0 as some
  from pg_depend d join pg_class c on c.oid = d.classid
 where d.deptype = 'e' and d.refobjid = (select oid from pg_extension where extname = 'migrator')
   and c.relname in ('pg_class', 'pg_proc')
 group by 1 order by 1;
