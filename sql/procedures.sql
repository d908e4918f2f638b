-- Procedures that commit: thin loops, no SET clause, not security definer, every name and operator qualified: types in
-- declarations too, and no IS DISTINCT FROM, which takes the = that the caller's search_path finds first.

create procedure migrator.prepare(relation regclass default null, change bigint default null)
language plpgsql as $$
declare
    id bigint := migrator._change_id(relation, change);
    step pg_catalog.record;
begin
    loop
        select * into strict step from migrator.advance(id);
        commit;
        exit when step.done operator(pg_catalog.=) true or step.state operator(pg_catalog.=) any (array['finished', 'cancelled']::pg_catalog.text[]);
        if step.reason operator(pg_catalog.=) 'paused' then
            raise exception using errcode = '55000', message = pg_catalog.format('change %s is paused', id),
                detail = 'Capture goes on, everything else waits where it is. What was committed before stays.',
                hint = pg_catalog.format('Let it go on: select migrator.resume(change => %s);', id);
        end if;
        if step.wait_ms operator(pg_catalog.>) 0 then
            perform pg_catalog.pg_sleep(step.wait_ms operator(pg_catalog./) 1000.0);
            commit;
        end if;
    end loop;
end
$$;

-- The cheapest safe way, and says which. The functions that it is made of check rights and arguments.
create procedure migrator.alter_table(relation regclass, actions text, strategy text default 'auto', transform jsonb default '{}', reverse jsonb default '{}')
language plpgsql as $$
declare
    steps pg_catalog.jsonb := migrator._alter_steps(relation, actions, strategy, transform, reverse);
    step pg_catalog.jsonb;
    said pg_catalog.text;
    says pg_catalog.text;
begin
    commit;   -- where a caller's transaction does not allow that, it fails here, before anything is changed
    for number in 0 .. pg_catalog.jsonb_array_length(steps) operator(pg_catalog.-) 1 loop
        step := steps operator(pg_catalog.->) number;
        says := pg_catalog.concat_ws(': ', step operator(pg_catalog.->>) 'way', step operator(pg_catalog.->>) 'reason');
        if said is null or said operator(pg_catalog.<>) says then
            said := says;
            raise notice '%', said;
        end if;
        if step operator(pg_catalog.->>) 'act' operator(pg_catalog.=) 'shadow' then
            call migrator._alter_through_shadow(relation, migrator._alter_shadow(relation, actions, transform, reverse, steps, number));
        else
            perform migrator._alter_step(relation, actions, steps, number);
        end if;
        commit;
    end loop;
end
$$;

create procedure migrator._alter_through_shadow(relation regclass, change bigint)
language plpgsql as $$
declare
    step pg_catalog.record;
    waits pg_catalog.text := '';
    name pg_catalog.text;
begin
    commit;
    loop
        select * into strict step from migrator.advance(change);
        commit;
        exit when step.state operator(pg_catalog.=) any (array['swapped', 'finished', 'cancelled']::pg_catalog.text[]);
        if step.reason operator(pg_catalog.=) 'paused' then
            raise exception using errcode = '55000', message = pg_catalog.format('change %s is paused', change),
                detail = 'Capture goes on, everything else waits where it is. What was committed before stays.',
                hint = pg_catalog.format('Let it go on: select migrator.resume(change => %s);', change);
        end if;
        if step.state operator(pg_catalog.=) 'ready' and step.done then
            -- advance() would have swapped: rows do not fit, or somebody postponed it
            if (select s.waits_for operator(pg_catalog.~~) 'postponed%' from migrator.status s where s.change operator(pg_catalog.=) $2) then
                raise notice 'change % is ready and postponed; it is swapped when that is over', change
                    using hint = pg_catalog.format('To swap it now: select * from migrator.swap(change => %s);', change);
                return;
            end if;
            perform migrator.swap(change => change);   -- tries the rows again, and says which it is
            commit;
            continue;
        end if;
        if step.wait_ms operator(pg_catalog.>) 0 then
            if step.wait_ms operator(pg_catalog.>=) 1000 and step.reason operator(pg_catalog.<>) waits then
                waits := step.reason;
                raise notice 'change % waits: %', change, waits;
            end if;
            perform pg_catalog.pg_sleep(step.wait_ms operator(pg_catalog./) 1000.0);
            commit;
        end if;
    end loop;
    if step.state operator(pg_catalog.=) 'swapped' then
        perform migrator.validate(change => change);
        commit;
        select h.relation into strict name from migrator.history h where h.change operator(pg_catalog.=) $2;
        raise notice 'change % is done: table % has its new shape, and the old one is kept in step', change, name
            using hint = pg_catalog.format('To keep it: select migrator.finish(%L); to take it back with every write since: select * from migrator.rollback(%L);', name, name);
    else
        raise exception using errcode = '55000', message = pg_catalog.format('change %s was ended by somebody else: it is %s', change, step.state),
            detail = 'This call has nothing left to do.',
            hint = pg_catalog.format('select * from migrator.log(change => %s); tells who did so, and when.', change);
    end if;
end
$$;
