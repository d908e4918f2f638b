//! Values and columns of every kind, keys of every kind, names of every kind: what comes out of a change, and out of
//! its rollback, is what was there, as any SELECT shows it.

use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::same_rows::{fingerprint, same_rows};
use migrator_tests::*;

for_each_server!(
    values_of_every_type,
    rows_that_differ_little,
    keys_behind_the_cursor,
    generated_columns_and_sequences,
    columns_with_a_history,
    big_values_that_an_update_leaves_alone,
    names_of_every_kind,
    tables_without_rows,
);
for_oldest_and_newest_server!(the_most_columns_a_table_can_have, keys_that_compare_in_their_own_way);

/// Takes a table through everything there is, with `columns` compared at each stop.
async fn there_and_back(database: &Database, table: &str, actions: &str, columns: &str) -> Result<()> {
    let session = database.connect().await?;
    let query = format!("select {columns} from {table}");
    let before = fingerprint(&session, &query).await?;

    let change = Change::create(database, table, actions).await?;
    change.until_ready().await?;
    let rear = change.rear().await?;
    same_rows(&session, &query, &format!("select {columns} from {rear}")).await?;
    change.verify().await?;
    change.swap().await?;
    ensure!(fingerprint(&session, &query).await? == before, "the swap changed rows of {table}");
    change.until_in_step().await?;
    change.rollback().await?;
    ensure!(fingerprint(&session, &query).await? == before, "the rollback changed rows of {table}");
    change.until_ready().await?;
    change.swap().await?;
    change.until_in_step().await?;
    change.finish().await?;
    ensure!(fingerprint(&session, &query).await? == before, "the change did not keep the rows of {table}");
    nothing_left_behind(database).await
}

async fn columns_of(session: &Session, table: &str) -> Result<String> {
    let sql = format!(
        "select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute \
         where attrelid = {}::regclass and attnum > 0 and not attisdropped",
        session::literal(table)
    );
    Ok(session.value(&sql).await?)
}

async fn values_of_every_type(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            r#"create type mood as enum ('sad', 'so so', 'happy');
               create type pair as (a int, b text);
               create domain even as int check (value % 2 = 0);
               create domain small_even as even check (value < 1000);
               create table kinds (
                   id int primary key, f4 real, f8 double precision, n numeric, n2 numeric(20,4), j json, jb jsonb, x xml,
                   r int4range, mr nummultirange, ai int[], at text[], aa int[][], d small_even, p pair, ap pair[], e mood,
                   bi bit(5), vb bit varying, m money, l pg_lsn, tv tsvector, tq tsquery, po point, li line, ls lseg, bo box,
                   pa path, pg polygon, ci circle, ts timestamp, tz timestamptz, da date, ti time, tt timetz, iv interval,
                   ip inet, cd cidr, ma macaddr8, by bytea, u uuid, c char(10), vc varchar(20), t text, o oid, rc regclass,
                   na name, ch "char", bl boolean)"#
        )
        .await?;
    // Not every build knows XML; PostgreSQL 15's does.
    let xml = session.value("select xml '<a b=\"1\"/>'").await.is_ok();
    session.run(if xml { "set xmloption = content" } else { "alter table kinds alter x type text" }).await?;
    session
        .run(
            r#"insert into kinds select 1, 'NaN', 'NaN', 'NaN', 1.0, '{"a": 1,  "a": 2}', '{"a": 1}', '<a b="1"/>',
                   '[1,5)', '{[1,2),[3,4)}', '[0:2]={1,2,3}', '{NULL,"",x}', '{{1,2},{3,4}}', 4, '(1,"")', array[(1,'x')::pair, null],
                   'so so', '10101', '1', 12.34, '16/B374D848', 'a:1 b:2', 'a & b', '(1,-0)', '{1,2,3}', '[(0,0),(1,1)]',
                   '(1,1),(0,0)', '[(0,0),(1,1),(2,0)]', '((0,0),(1,1),(2,0))', '<(0,0),1>', 'infinity', '-infinity',
                   'infinity', '24:00', '23:59:59.999999+15:59', '1 mon -1 day 00:00:00.000001', '::1/64', '10.0.0.0/8',
                   '08:00:2b:01:02:03:04:05', '\x00ff', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'ab', 'ab ', 'ünï', 4294967295,
                   'pg_class', 'n', '', true;
               insert into kinds (id, f4, f8, n, t, c, vc, po) values (2, '-0', '-0', '1.00', '', '', '', '(-0,NaN)');
               insert into kinds (id, f4, f8, n, n2) values (3, 'infinity', '-infinity', '-infinity', 1.0000);
               insert into kinds (id, n, tz, da, iv) values (4, '1.0', '0044-03-15 12:00 BC', '4713-01-01 BC', '24 hours');
               insert into kinds (id, n, iv, r, ai) values (5, '1', '1 day', 'empty', '{}');
               insert into kinds (id) values (6);
               insert into kinds select g, g, g, g from generate_series(10, 400) g"#,
        )
        .await?;
    let columns = columns_of(&session, "public.kinds").await?;
    there_and_back(&database, "public.kinds", "alter column id type bigint, add column added int default 3", &columns)
        .await
}

async fn rows_that_differ_little(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table little (id int primary key, a text, b text, n numeric, f float8);
             insert into little values (1, null, '', 1.0, 0), (2, '', null, 1.00, '-0'), (3, null, null, null, null);
             insert into little select g from generate_series(4, 200) g",
        )
        .await?;
    let change = Change::create(&database, "public.little", "alter column id type bigint").await?;
    change.until_ready().await?;
    // Updates that an equality of values would not notice.
    session
        .run(
            "update little set a = '', b = null where id = 1; update little set a = null, b = '' where id = 2;
             update little set n = 1.000 where id = 1; update little set f = '-0' where id = 1; update little set f = 0 where id = 2;
             update little set a = 'x' where id = 3; update little set a = null where id = 3; update little set b = '' where id = 10",
        )
        .await?;
    change.until_in_step().await?;
    let rear = change.rear().await?;
    same_rows(&session, "table little", &format!("table {rear}")).await?;

    // What nobody captured is found by verify, however small it is.
    for sneaky in ["n = 1.0000 where id = 2", "f = '-0' where id = 2", "a = '' where id = 3", "b = null where id = 10"]
    {
        session.run(&format!("update {rear} set {sneaky}")).await?;
        let found = session.row(&format!("select mismatched from migrator.verify(change => {})", change.id)).await?;
        ensure!(found[0] == "1", "verify finds {} rows after {sneaky}", found[0]);
        change.until_ready().await?;
        same_rows(&session, "table little", &format!("table {rear}")).await?;
    }
    change.swap().await?;
    change.finish().await?;
    nothing_left_behind(&database).await
}

async fn keys_that_compare_in_their_own_way(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let mut types = vec![
        ("text", "text", r#"collate "C""#),
        ("padded", "char(12)", ""),
        ("bytes", "bytea", ""),
        ("number", "numeric", ""),
        ("uuid", "uuid", ""),
        ("float", "float8", ""),
        ("time", "timestamptz", ""),
    ];
    if session.number("select count(*) from pg_available_extensions where name = 'citext'").await? == 1 {
        session.run("create extension citext").await?;
        types.push(("ci", "citext", ""));
    } else {
        // A build without contrib modules cannot have such keys; 15 and 18 have them.
        println!("no citext on {}", server.major);
    }
    // Not every build knows ICU.
    let soft = "create collation soft (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";
    if session.run(soft).await.is_ok() {
        types.push(("icu", "text", r#"collate "de-x-icu""#));
        types.push(("soft", "text", "collate soft"));
    }
    for (name, kind, collation) in types {
        let value = match name {
            "bytes" => "convert_to(md5(g::text), 'UTF8')",
            "number" => "g * 1.10 - 300",
            "uuid" => "md5(g::text)::uuid",
            "float" => "case g when 7 then 'NaN' when 8 then '-infinity' else sqrt(g) end",
            "time" => "timestamptz '2020-03-29 00:00+00' + g * interval '7 minutes'",
            _ => "chr(65 + g % 26) || substr(md5(g::text), 1, 6)",
        };
        session
            .run(&format!(
                "create table key_{name} (k {kind} {collation}, part int, v text, primary key (k, part));
                 insert into key_{name} select {value}, g % 3, g::text from generate_series(1, 900) g"
            ))
            .await?;
        let table = format!("public.key_{name}");
        let change = Change::create(&database, &table, "alter column part type bigint, add column w int").await?;
        change.until(|advance| advance.step == "copy" && advance.rows > 0).await?;
        let busy = format!(
            "update {table} set v = v || '!' where part = 1;
             delete from {table} where v::text like '1%' and part = 2;
             update {table} set part = 7 where part = 0 and length(v) = 2"
        );
        session.run(&busy).await?;
        change.until_ready().await?;
        session.run(&busy.replace("'!'", "'?'").replace("part = 7", "part = 8")).await?;
        if matches!(name, "ci" | "soft") {
            // Equal, but not the same: the key itself is written anew.
            session.run(&format!("update {table} set k = lower(k::text) where part = 7")).await?;
        }
        change.until_in_step().await?;
        let rear = change.rear().await?;
        same_rows(&session, &format!("select k, part, v from {table}"), &format!("select k, part, v from {rear}"))
            .await?;
        change.swap().await?;
        session.run(&format!("delete from {table} where part = 8; update {table} set v = upper(v)")).await?;
        change.until_in_step().await?;
        let rear = change.rear().await?;
        same_rows(&session, &format!("select k, part, v from {table}"), &format!("select k, part, v from {rear}"))
            .await?;
        change.rollback().await?;
        change.until_ready().await?;
        change.cancel().await?;
    }
    nothing_left_behind(&database).await
}

async fn keys_behind_the_cursor(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table behind (id int primary key, v text);
             insert into behind select g, repeat('x', 200) from generate_series(1, 60000) g;
             delete from behind where id % 5 = 0;
             create sequence round increment by -5 minvalue 29990 maxvalue 60000 start 30000 cycle",
        )
        .await?;
    session.run("vacuum behind").await?;
    let change = Change::create(&database, "public.behind", "alter column id type bigint").await?;
    let driver = change.session().await?;
    let mut batches = 0;
    loop {
        let advance = change.advance(&driver).await?;
        if advance.step == "copy" && advance.rows > 0 {
            // Free room in pages already copied and not yet copied takes new rows; keys go across the cursor both ways.
            let g = batches;
            session
                .run(&format!(
                    "insert into behind values (-1 - {g}, 'negative'), ({g} * 5 + 5, 'in a gap'), (nextval('round'), 'round'), (1000000 + {g}, 'beyond');
                     update behind set id = 2000000 + {g} where id = 1 + 10 * {g};
                     update behind set id = -500000 - {g} where id = 59999 - 10 * {g};
                     delete from behind where id = 2 + 10 * {g}; insert into behind values (2 + 10 * {g}, 'again')"
                ))
                .await?;
            batches += 1;
        }
        if advance.done {
            break;
        }
        tokio::time::sleep(advance.wait.min(std::time::Duration::from_millis(50))).await;
    }
    ensure!(batches > 1, "the copy of 12 MB took {batches} batch: it is not bounded, or the test tests nothing");
    change.until_in_step().await?;
    let rear = change.rear().await?;
    same_rows(&session, "table behind", &format!("table {rear}")).await?;
    change.swap().await?;
    change.finish().await?;
    nothing_left_behind(&database).await
}

async fn generated_columns_and_sequences(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create sequence shared;
             create table made (
                 id serial primary key, always int generated always as identity, given int generated by default as identity (increment 5),
                 number int default nextval('shared'), a int, twice int generated always as (a * 2) stored);
             create table other (id int default nextval('shared'));
             insert into made (a) select g from generate_series(1, 50) g;
             insert into other default values",
        )
        .await?;
    if server.major >= 18 {
        session.run("alter table made add thrice int generated always as (a * 3) virtual").await?;
    }
    let columns = columns_of(&session, "public.made").await?;
    let insert = "insert into made (a) values (1000)";
    let last = "select concat_ws(' ', id, always, given, number, twice) from made order by id desc limit 1";

    let change = Change::create(&database, "public.made", "alter column id type bigint, add column more text").await?;
    change.until_ready().await?;
    session.run(insert).await?;
    ensure!(session.value(last).await? == "51 51 251 52 2000", "before the swap: {}", session.value(last).await?);
    change.until_in_step().await?;
    let rear = change.rear().await?;
    same_rows(&session, &format!("select {columns} from made"), &format!("select {columns} from {rear}")).await?;

    // A statement prepared before the swap holds the sequence by its oid.
    let prepared = session.client().prepare("insert into made (a) values (1000)").await?;
    change.swap().await?;
    session.run(insert).await?;
    ensure!(session.value(last).await? == "52 52 256 53 2000", "after the swap: {}", session.value(last).await?);
    session.client().execute(&prepared, &[]).await?;
    ensure!(session.value(last).await? == "53 53 261 54 2000", "prepared: {}", session.value(last).await?);
    ensure!(
        session.value("select pg_get_serial_sequence('made', 'id')").await? == "public.made_id_seq",
        "the serial's sequence belongs to another column"
    );
    change.until_in_step().await?;
    change.rollback().await?;
    session.run(insert).await?;
    session.client().execute(&prepared, &[]).await?;
    ensure!(session.value(last).await? == "55 55 271 56 2000", "rolled back: {}", session.value(last).await?);
    change.until_ready().await?;
    change.swap().await?;
    change.finish().await?;
    session.run(insert).await?;
    ensure!(session.value(last).await? == "56 56 276 57 2000", "finished: {}", session.value(last).await?);
    session.run("insert into other default values").await?;
    nothing_left_behind(&database).await
}

async fn columns_with_a_history(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table aged (gone1 int, id int primary key, gone2 text, a text, b int);
             insert into aged select g, g, 'x', 'a' || g, g from generate_series(1, 300) g;
             alter table aged drop gone1; alter table aged add fast text default 'fast'; alter table aged add fast2 int default 7;
             alter table aged drop gone2; update aged set fast = 'slow' where id % 3 = 0; alter table aged alter fast set default 'later';
             insert into aged (id) values (301)",
        )
        .await?;
    there_and_back(&database, "public.aged", "alter column b type bigint, add column z int", "id, a, b, fast, fast2")
        .await?;

    // Columns are told apart by their history, not by their names.
    session.run("create table renamed (id int primary key, q int, r text); insert into renamed select g, g, 'r' || g from generate_series(1, 50) g").await?;
    let change = Change::create(
        &database,
        "public.renamed",
        "drop column q, add column q int, alter column r type varchar(9) using upper(r)",
    )
    .await?;
    change.until_ready().await?;
    change.swap().await?;
    let wrong = "select count(*) from renamed where q is not null or r is distinct from 'R' || id";
    ensure!(
        session.number(wrong).await? == 0,
        "a new column of an old name brought old values, or USING was not applied"
    );
    change.rollback().await?;
    ensure!(session.number("select count(*) from renamed where q = id and r = 'r' || id").await? == 50, "values lost");
    change.until_ready().await?;
    change.cancel().await?;
    nothing_left_behind(&database).await
}

async fn big_values_that_an_update_leaves_alone(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table big (id int primary key, v text, n int);
             alter table big alter v set storage external;
             insert into big select g, (select string_agg(md5(g || '-' || h), '') from generate_series(1, 32768) h), 0
             from generate_series(1, 6) g",
        )
        .await?;
    ensure!(session.number("select min(length(v)) from big").await? == 1 << 20, "the values have 1 MiB");
    let change = Change::create(&database, "public.big", "alter column id type bigint").await?;
    change.until_ready().await?;
    session.run("update big set n = n + 1").await?;
    change.until_in_step().await?;
    let rear = change.rear().await?;
    same_rows(&session, "select id, md5(v), n from big", &format!("select id, md5(v), n from {rear}")).await?;

    // A rewrite of the live table moves its TOAST values; the change copes or starts over, and ends right.
    let patient = database.connect().await?;
    patient.run("vacuum full big").await?;
    session.run("update big set n = n + 1").await?;
    change.until_ready().await?;
    change.until_in_step().await?;
    same_rows(&session, "select id, md5(v), n from big", &format!("select id, md5(v), n from {rear}")).await?;
    change.swap().await?;
    session.run("update big set n = n + 1").await?;
    change.until_in_step().await?;
    change.rollback().await?;
    ensure!(session.number("select count(*) from big where n = 3 and length(v) = 1 << 20").await? == 6, "values lost");
    change.until_ready().await?;
    change.cancel().await?;
    nothing_left_behind(&database).await
}

async fn names_of_every_kind(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let long = "n".repeat(63);
    for (number, name) in
        ["Order Items; --", "with \"quotes\" and 'apostrophes'", "ünïcödé ☃", "select", "$1 %I %s {} \\", long.as_str()]
            .into_iter()
            .enumerate()
    {
        let quoted = format!("\"{}\"", name.replace('"', "\"\""));
        let schema = format!("\"Schema; {number}\"");
        let table = format!("{schema}.{quoted}");
        session
            .run(&format!(
                "create schema {schema};
                 create table {table} ({quoted} serial primary key, \"a b\" text unique, \"c;d\" int generated always as identity);
                 insert into {table} (\"a b\") select 'v' || g from generate_series(1, 40) g"
            ))
            .await?;
        let actions = format!("alter column {quoted} type bigint, add column \"new one; --\" int");
        there_and_back(&database, &table, &actions, &format!("{quoted}, \"a b\", \"c;d\"")).await.context(table)?;
    }
    Ok(())
}

async fn the_most_columns_a_table_can_have(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let columns: Vec<String> = (2..=1600).map(|column| format!("c{column} int2")).collect();
    session
        .run(&format!(
            "create table wide (c1 int primary key, {}); insert into wide (c1, c2, c1600) select g, g, g from generate_series(1, 20) g",
            columns.join(", ")
        ))
        .await?;
    there_and_back(&database, "public.wide", "alter column c2 type bigint", "c1, c2, c3, c1600").await
}

async fn tables_without_rows(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table empty (id int primary key, v text)").await?;
    let change = Change::create(&database, "public.empty", "alter column id type bigint").await?;
    change.until_ready().await?;
    session.run("insert into empty values (1, 'first')").await?;
    change.swap().await?;
    session.run("insert into empty values (2, 'second')").await?;
    change.until_in_step().await?;
    change.rollback().await?;
    ensure!(session.value("select string_agg(v, ' ' order by id) from empty").await? == "first second", "rows lost");
    change.until_ready().await?;
    change.swap().await?;
    change.finish().await?;

    // A table without a key is refused, before anything is made, and told the way out.
    session.run("create table keyless (v text)").await?;
    let refusal = session.refusal("select migrator.create_shadow('keyless', 'add column w int')").await?;
    ensure!(refusal.hint.is_some() && refusal.message.contains("keyless"), "{refusal}");
    nothing_left_behind(&database).await
}
