-- The loop over migrator.step: no SET clause, not security definer, every name and operator qualified.

create procedure migrator.run_upgrades(relation regclass)
language plpgsql as $$
declare
    step record;
    told text;
begin
    perform migrator._run_upgrades();
    loop
        select * into strict step from migrator.step(relation);
        commit;
        if step.state operator(pg_catalog.=) any (array['paused', 'blocked']::pg_catalog.text[]) then
            raise exception using errcode = '55000',
                message = pg_catalog.format('upgrades of table %s are %s: %s', relation, step.state, step.reason),
                detail = 'What was done so far is committed.',
                hint = pg_catalog.format('select * from migrator.upgrades; says more. To go on: select migrator.resume_upgrades(%L);', relation);
        end if;
        if step.done operator(pg_catalog.=) true then
            if step.reason is not null then
                raise notice '%', step.reason;
            end if;
            exit;
        end if;
        if step.statement is not null and told is null then
            told := step.statement;
            raise notice 'room of old row versions can be used again after: %;', step.statement
                using hint = 'VACUUM cannot run in here; autovacuum, another session, or the agent does it.';
        end if;
        if step.wait_ms operator(pg_catalog.>) 0 then
            perform pg_catalog.pg_sleep(step.wait_ms operator(pg_catalog./) 1000.0);
            commit;
        end if;
    end loop;
end
$$;
