//! Whose word it is how much is too much, and with whose rights a query of one's own is asked.

use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::*;

pub async fn who_may_say_what_is_too_much(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let [owner, operator, other] = ["owner", "operator", "other"].map(|role| format!("{role}_{}", database.name));
    for role in [&owner, &operator, &other] {
        session.run(&format!("create role {role} login")).await?;
    }
    session
        .run(&format!(
            "create table mine (id int primary key); insert into mine values (1); alter table mine owner to {owner};
             create table secret as select 1 as level; create table gauge as select 1 as level; grant select on gauge to {operator}"
        ))
        .await?;
    let change = Change::create(&database, "public.mine", "alter column id type bigint").await?;

    // Everybody may look whose change it is; only whom the DBA trusts may set.
    for (role, signals) in [(&owner, 15), (&other, 0)] {
        let theirs = database.connect_as(role, "test").await?;
        ensure!(theirs.number("select count(*) from migrator.signals").await? == signals, "{role}");
        for call in ["set_limit('replay_lag', '1 h')", "set_own_query('select 1')", "report_check('http://x/', '503')"]
        {
            let refusal = theirs.refusal(&format!("select * from migrator.{call}")).await?;
            ensure!(refusal.code == "42501", "{role} {call}: {refusal}");
        }
    }
    session.run(&format!("grant execute on function migrator.set_limit, migrator.set_own_query to {operator}")).await?;
    let operating = database.connect_as(&operator, "test").await?;
    let set = operating.row("select * from migrator.set_limit('replay_lag', '1 h')").await?;
    ensure!(set == ["1 h", "18 min"], "{set:?}");
    let shown = session.row("select enter, leave, set_by from migrator.signals where signal = 'replay_lag'").await?;
    ensure!(shown == ["1 h".to_owned(), "18 min".to_owned(), operator.clone()], "{shown:?}");
    for (call, words) in [
        ("set_limit('lag', '1 h')", "no signal"),
        ("set_limit('replay_lag', '1 h', '2 h')", "cannot be raised at"),
        ("set_limit('free_disk', '2 GB', '1 GB')", "cannot be raised at"),
        ("set_limit('replay_lag', '8 GB')", "not a duration"),
        ("set_limit('slot_wal', '-1')", "not a size"),
        ("set_limit('archive_ready', 'NaN')", "not a number"),
        ("set_limit('lost_standby', '1 h', '1 min')", "no threshold to leave at"),
        ("set_limit('wal_rate', '0')", "not a size"),
        ("set_limit('http_check', '1')", "no threshold"),
        ("set_own_query('select 1', timeout => '1 min')", "timeout"),
        ("set_own_query('select 1', timeout => '-1 s')", "timeout"),
        ("set_own_query('select ''NaN''::float8')", "not a number"),
    ] {
        let refusal = operating.refusal(&format!("select * from migrator.{call}")).await?;
        ensure!(
            refusal.code == "22023" && refusal.message.contains(words) && refusal.hint.is_some(),
            "{call}: {refusal}"
        );
    }
    let set = operating.row("select * from migrator.set_limit('replay_lag')").await?;
    ensure!(set == ["10 s", "3 s"], "back to the default: {set:?}");

    // The caller's own statement_timeout ends the call, not only the query, and leaves the session as any error does.
    operating.run("set statement_timeout = '200 ms'").await?;
    let refusal = operating.refusal("select migrator.set_own_query('select 1 from pg_catalog.pg_sleep(20)')").await?;
    ensure!(refusal.code == "57014", "{refusal}");
    operating.run("set statement_timeout = '20 s'").await?;
    let refusal = operating.refusal("select migrator.set_own_query('select 1 from pg_catalog.pg_sleep(20)')").await?;
    ensure!(refusal.code == "57014" && refusal.message.contains("longer than 1000 ms"), "{refusal}");
    operating.run("reset statement_timeout").await?;

    // The query has the rights of who set it, whoever drives the change, and for as long as those are the same.
    let query = "select * from migrator.set_own_query('select level - 1 from public.gauge')";
    let refusal = operating.refusal("select migrator.set_own_query('select level from public.secret')").await?;
    ensure!(refusal.code == "42501" && refusal.hint.is_some(), "{refusal}");
    ensure!(operating.value(query).await? == "0", "what it says now");
    let driver = change.session().await?;
    let reason = || async {
        session.run("update migrator.load set sampled_at = '-infinity'").await?;
        let sql = format!("select reason from migrator.copy_batch(change => {})", change.id);
        driver.value(&sql).await
    };
    change.until(|advance| advance.state == "copying").await?;
    ensure!(reason().await?.is_empty(), "{}", reason().await?);
    session
        .run(&format!(
            "alter table gauge enable row level security; create policy none on gauge to {operator} using (false)"
        ))
        .await?;
    ensure!(reason().await?.is_empty(), "no row for this role, so nothing to say: {}", reason().await?);
    session.run(&format!("revoke select on gauge from {operator}")).await?;
    ensure!(reason().await?.contains("permission denied for table gauge"), "{}", reason().await?);
    session.run(&format!("alter role {operator} superuser")).await?;
    ensure!(reason().await?.contains("was no superuser when it set the query"), "{}", reason().await?);
    session.run(&format!("alter role {operator} nosuperuser; alter role {operator} rename to was_{operator}")).await?;
    ensure!(reason().await?.contains("does not exist"), "{}", reason().await?);
    let found = session.value("select problem from migrator.doctor() where subject = 'signal own_query'").await?;
    ensure!(found.contains("slows down work since"), "doctor says: {found}");
    session.run("select migrator.set_own_query()").await?;
    ensure!(reason().await?.is_empty(), "{}", reason().await?);
    ensure!(
        session.value("select set_by from migrator.signals where signal = 'own_query'").await?.is_empty(),
        "taken away"
    );

    change.cancel().await?;
    nothing_left_behind(&database).await?;
    session.run(&format!("reassign owned by {owner} to postgres; drop owned by {owner}, was_{operator}, {other}; drop role {owner}, was_{operator}, {other}")).await?;
    Ok(())
}
