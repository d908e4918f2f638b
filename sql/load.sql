-- What slows work down or holds it, and who may say when.

create view migrator.signals as
select s.signal, s.verdict, s.factor, s.reason, s.since, s.value, s.enter, s.leave, s.ignoring, s.sampled_at, s.set_by, s.set_at, s.remedy
  from migrator._signals() s;

grant select on migrator.signals to public;

-- The limits protect the whole server, so the owner of one table does not lift them. Granted to whom the DBA trusts with that.
revoke execute on function migrator.set_limit(text, text, text, text[]) from public;
revoke execute on function migrator.set_own_query(text, interval) from public;
revoke execute on function migrator.report_check(text, text, interval) from public;
