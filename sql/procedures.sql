-- Procedures that commit: thin loops, no SET clause, not security definer, every name and operator qualified.

create procedure migrator.prepare(relation regclass default null, change bigint default null)
language plpgsql as $$
declare
    id bigint := migrator._change_id(relation, change);
    step record;
begin
    loop
        select * into strict step from migrator.advance(id);
        commit;
        exit when step.done operator(pg_catalog.=) true or step.state operator(pg_catalog.=) any (array['ready', 'swapped', 'finished', 'cancelled']::pg_catalog.text[]);
        if step.reason operator(pg_catalog.=) 'paused' then
            raise exception using errcode = '55000', message = pg_catalog.format('change %s is paused', id),
                hint = pg_catalog.format('Let it go on: select migrator.resume(change => %s);', id);
        end if;
        if step.wait_ms operator(pg_catalog.>) 0 then
            perform pg_catalog.pg_sleep(step.wait_ms operator(pg_catalog./) 1000.0);
            commit;
        end if;
    end loop;
end
$$;
