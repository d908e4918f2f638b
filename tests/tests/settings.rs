//! Sessions with other settings: a value that depends on one comes out as in the session that began the change, whoever
//! drives it, and whoever writes.

use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::same_rows::same_rows;
use migrator_tests::*;

for_each_server!(settings_of_the_session_that_began);

async fn settings_of_the_session_that_began(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create schema first; create schema second;
             create function first.tag(text) returns text immutable language sql as $$ select 'first ' || $1 $$;
             create function second.tag(text) returns text immutable language sql as $$ select 'second ' || $1 $$;
             create table moments (id int primary key, at timestamptz, day date, span interval, f float8, b bytea, local timestamp);
             insert into moments select g, timestamptz '2024-03-09 20:00+00' + g * interval '37 min', date '2024-02-03' + g, g * interval '1 day 01:02:03',
                 g / 3.0, decode(lpad(to_hex(g), 4, '0'), 'hex'), timestamp '2024-03-10 00:00' + g * interval '11 min' from generate_series(1, 200) g",
        )
        .await?;
    let began = database.connect().await?;
    began
        .run(
            "set timezone = 'America/New_York'; set datestyle = 'German'; set intervalstyle = 'iso_8601'; set extra_float_digits = -5;
             set bytea_output = 'escape'; set search_path = first, public",
        )
        .await?;
    let actions = "alter column at type text, alter column day type text, alter column span type text, alter column f type text, \
                   alter column b type text, alter column local type timestamptz, add column tag text";
    let change = Change::create_in(
        &database,
        &began,
        "public.moments",
        &format!(
            "actions => {}, {}",
            session::literal(actions),
            change::arguments(
                r#"{"tag": "tag(id::text)"}"#,
                r#"{"at": "at::timestamptz", "day": "day::date", "span": "span::interval", "f": "f::float8", "b": "b::bytea"}"#
            )
        ),
    )
    .await?;
    // Somebody else drives it, and writes: both with settings of their own.
    let other = database.connect().await?;
    other
        .run("set timezone = 'Asia/Kolkata'; set datestyle = 'SQL, DMY'; set intervalstyle = 'sql_standard'; set search_path = second, public")
        .await?;
    other.run(&format!("call migrator.prepare(change => {})", change.id)).await?;
    other.run("update moments set at = at + interval '1 s', day = day + 1 where id % 3 = 0; insert into moments values (1000, '2024-11-03 05:30+00', '2024-01-02')").await?;
    began.run("create table public.wanted as select id, at::text, day::text, span::text, f::text, b::text, local::timestamptz, tag(id::text) from moments where id <> 2000").await?;
    other.run("call migrator.prepare('public.moments')").await?;
    let rear = change.rear().await?;
    same_rows(&session, "table wanted", &format!("table {rear}")).await?;
    // The last keys too, which the swap takes itself.
    other.run("insert into moments (id, at, local) values (2000, '2024-07-01 12:00+00', '2024-07-01 12:00')").await?;
    other.run(&format!("select * from migrator.swap(change => {})", change.id)).await?;
    let told = session
        .value("select at || ' ' || tag || ' ' || extract(epoch from local) from moments where id = 2000")
        .await?;
    ensure!(told.starts_with("01.07.2024 08:00:00 EDT first 2000 1719849600"), "{told}");
    same_rows(&session, "table wanted", "select * from moments where id <> 2000").await?;
    change.until_in_step().await?;
    change.finish().await?;
    nothing_left_behind(&database).await
}
