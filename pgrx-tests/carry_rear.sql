-- migrator_rear(table, actions): an empty table of the same make in schema migrator_shadow_1, changed by `actions`, with
-- indexes and keys under the names of the original: what create_shadow and the index builds would make of it.
create or replace function pg_temp.migrator_rear(subject regclass, actions text default null) returns regclass
language plpgsql as $rear$
declare
    rear text;
    index record;
    common text;
begin
    create schema if not exists migrator_shadow_1;
    create schema if not exists migrator_backup_1;
    select format('migrator_shadow_1.%I', relname) into rear from pg_class where oid = subject;
    execute format('create table %s (like %s including defaults including identity including constraints including comments including generated including storage including compression)', rear, subject);
    execute format('alter table %s owner to %s', rear, (select relowner::regrole from pg_class where oid = subject));
    if actions is not null then
        execute format('alter table %s %s', rear, actions);
    end if;
    for index in
        select c.relname, pg_get_indexdef(i.indexrelid) as definition, k.conname, k.contype from pg_index i join pg_class c on c.oid = i.indexrelid
        left join pg_constraint k on k.conindid = i.indexrelid and k.contype in ('p', 'u') where i.indrelid = subject
    loop
        begin
            execute replace(index.definition, format(' ON %s ', subject), format(' ON %s ', rear));
            if index.conname is not null then
                execute format('alter table %s add constraint %I %s using index %I', rear, index.conname, case index.contype when 'p' then 'primary key' else 'unique' end, index.relname);
            end if;
        exception when undefined_column or undefined_function then null; -- the column is dropped, renamed or of another type
        end;
    end loop;
    select string_agg(quote_ident(o.attname), ', ') into common from pg_attribute o join pg_attribute n on n.attrelid = rear::regclass and n.attname = o.attname
    where o.attrelid = subject and o.attnum > 0 and not o.attisdropped and o.attgenerated = '' and o.atttypid = n.atttypid;
    if common is not null then
        execute format('insert into %s (%s) overriding system value select %2$s from %3$s', rear, common, subject);
    end if;
    return rear;
end
$rear$;
