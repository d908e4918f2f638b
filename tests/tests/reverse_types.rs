//! The way back of columns whose type has changed: what the old shape kept is what it was, and what it has no room for is refused.

use migrator_tests::change::arguments;
use migrator_tests::same_rows::fingerprint;
use migrator_tests::session::literal;
use migrator_tests::*;

for_each_server!(
    a_type_that_holds_less_takes_nothing_away,
    what_does_not_fit_is_not_cut_on_the_way_back,
    digits_that_say_nothing,
    rows_in_a_column_do_not_go_through_text
);

/// Rows that are written after the swap are put together from both shapes. What the new one holds only in part, or in a type that has
/// nothing in common with the old one, is in the old table as it was, as long as nobody wrote that column: there and back, twice.
async fn a_type_that_holds_less_takes_nothing_away(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create domain code as varchar(5) check (value <> '');
             create domain short_code as code check (value <> '-');
             create domain codes as varchar(5)[] check (cardinality(value) < 9);
             create table reading (id int primary key, exact numeric, doc json, at timestamptz, label char(4), bits bit(4), code code, spare numeric,
                 shorter short_code, codes codes, letter \"char\", span interval day to second (3), labels char(4)[], masks bit(4)[], note text);
             insert into reading select g, ('0.' || repeat(g::text, 12))::numeric, ('{\"b\":   ' || g || ', \"a\": 1, \"a\": 2}')::json,
                    timestamptz '2026-01-01 12:34:56.789012+00' + g * interval '1 hour', 'a' || g, (g % 16)::bit(4), 'c' || g,
                    ('1.' || repeat(g::text, 14))::numeric, 's' || g, array['a' || g, 'bb'], chr(64 + g), g * interval '1 hour 1.2345 seconds',
                    array['x', 'l' || g], array[(g % 16)::bit(4)] from generate_series(1, 40) g",
        )
        .await?;
    let kept =
        "select id, exact, doc, at, label, bits, code, spare, shorter, codes, letter, span, labels, masks from reading";
    let before = fingerprint(&session, kept).await?;
    let actions = "alter column shorter type text, alter column codes type text[], alter column letter type text, alter column span type interval, \
                   alter column labels type text[], alter column masks type varbit[], alter column exact type float8, alter column doc type jsonb, alter column at type date, alter column label type text, \
                   alter column bits type varbit, alter column code type text, alter column spare type real";
    let change = Change::create(&database, "public.reading", actions).await?;
    for _ in 0..2 {
        change.until_ready().await?;
        change.swap().await?;
        session.run("update reading set note = 'seen' where id <= 20").await?;
        change.until_in_step().await?;
        change.rollback().await?;
        ensure!(fingerprint(&session, kept).await? == before, "values came back otherwise");
        session.run("update reading set note = 'again' where id between 10 and 30").await?;
    }
    // What was written in the new shape comes back as that says.
    change.until_ready().await?;
    change.swap().await?;
    session
        .run(
            "update reading set exact = 0.5, doc = '{\"c\": 1}', label = 'new', code = 'new', shorter = 'new', codes = '{new}', letter = 'n', \
                 span = '1 day 00:00:00.1234', labels = '{new}', masks = '{1010}' where id = 1",
        )
        .await?;
    change.until_in_step().await?;
    change.rollback().await?;
    let row = session
        .row("select exact, doc, label, code, spare, shorter, codes, letter, span, labels, masks from reading where id = 1")
        .await?;
    let said = [
        "0.5",
        "{\"c\": 1}",
        "new ",
        "new",
        "1.11111111111111",
        "new",
        "{new}",
        "n",
        "1 day 00:00:00.123",
        "{\"new \"}",
        "{1010}",
    ];
    ensure!(row == said, "{row:?}");
    change.cancel().await
}

/// What only the new shape has is kept over a rollback, where what it was made of is the same in a column with as many digits.
async fn digits_that_say_nothing(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run("create table sale (id int primary key, price numeric, note text); insert into sale values (1, 1.2), (2, 1.2), (3, 0.5)")
        .await?;
    let change = Change::create_with(
        &database,
        "public.sale",
        "actions => 'alter column price type numeric(10,2), add column total numeric(10,2)', transform => '{\"total\": \"price * 2\"}'",
    )
    .await?;
    change.until_ready().await?;
    change.swap().await?;
    session.run("update sale set total = 99 where id < 3").await?;
    change.until_in_step().await?;
    change.rollback().await?;
    session.run("update sale set note = 'seen' where id = 1; update sale set price = 2 where id = 2").await?;
    change.until_ready().await?;
    change.swap().await?;
    let totals = session.value("select string_agg(total::text, ' ' order by id) from sale").await?;
    ensure!(totals == "99.00 4.00 1.00", "{totals}");
    change.finish().await?;
    // What would have to be compared, and nobody assigns, may be more than the column has room for.
    session.run("create table dear (id int primary key, a int); insert into dear values (1, 1)").await?;
    let change = Change::create_with(
        &database,
        "public.dear",
        "actions => 'add column total numeric(4,2)', transform => '{\"total\": \"a * 10\"}'",
    )
    .await?;
    change.until_ready().await?;
    change.swap().await?;
    session.run("update dear set a = 50").await?;
    change.until_in_step().await?;
    change.rollback().await?;
    session.run("update dear set a = 2").await?;
    change.until_ready().await?;
    change.swap().await?;
    ensure!(session.value("select total from dear").await? == "20.00", "{:?}", session.row("table dear").await?);
    change.finish().await
}

/// A value that the old column has no room for stops the way back, and nothing is cut to make it fit.
async fn what_does_not_fit_is_not_cut_on_the_way_back(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create domain code as varchar(3); create type pair as (a varchar(3), b int)").await?;
    for (column, wider, value) in [
        ("varchar(3)", "text", "abcdef"),
        ("char(3)", "text", "abcdef"),
        ("bit(4)", "varbit", "101010"),
        ("varchar(3)[]", "text[]", "{abcdef}"),
        ("code[]", "text[]", "{abcdef}"),
    ] {
        session
            .run(&format!(
                "create table short (id int primary key, v {column}, note text); insert into short (id) values (1), (2)"
            ))
            .await?;
        let change = Change::create(&database, "public.short", &format!("alter column v type {wider}")).await?;
        change.until_ready().await?;
        change.swap().await?;
        session.run(&format!("update short set v = '{value}' where id = 1")).await?;
        let refusal = session.refusal(&format!("select migrator.rollback(change => {})", change.id)).await?;
        ensure!(refusal.code == "55000" && refusal.detail.contains("(22"), "{column}: {refusal}");
        ensure!(session.value("select v from short where id = 1").await? == value, "{column}: it was changed");
        change.finish().await?;
        session.run("drop table short").await?;
    }
    session
        .run("create table short (id int primary key, v pair, note text); insert into short values (1, '(abc,1)'), (2, '(b,2)')")
        .await?;
    // What a cast of the whole would cut is refused where it would be made.
    let arguments_with = |back: &str| {
        format!(
            "actions => 'alter column v type text using (v).a', reverse => {}",
            literal(&format!("{{\"v\": \"{back}\"}}"))
        )
    };
    let refusal =
        session.refusal(&format!("select migrator.create_shadow('short', {})", arguments_with("row(v, 1)"))).await?;
    let hint = refusal.hint.clone().unwrap_or_default();
    ensure!(refusal.code == "42804" && hint.contains("row(left(…, 3), …)::"), "{refusal}");
    let back = "case when length(v) < 4 then row(v, 1)::pair else (v || '(')::pair end";
    let change = Change::create_with(&database, "public.short", &arguments_with(back)).await?;
    change.until_ready().await?;
    change.swap().await?;
    session.run("update short set v = 'abcdef' where id = 1; update short set note = 'seen' where id = 2").await?;
    let refusal = session.refusal(&format!("select migrator.rollback(change => {})", change.id)).await?;
    ensure!(refusal.code == "55000" && refusal.detail.contains("(22P02"), "{refusal}");
    session.run("update short set v = 'new' where id = 1").await?;
    let deadline = std::time::Instant::now() + change::PATIENCE;
    while session.number("select count(*) from migrator.bad_rows").await? > 0 {
        ensure!(std::time::Instant::now() < deadline, "the row is not tried again");
        change.until_in_step().await?;
    }
    change.rollback().await?;
    let rows = session.value("select string_agg(v::text, ' ' order by id) from short").await?;
    ensure!(rows == "(new,1) (b,2)", "{rows}");
    change.cancel().await?;
    session.run("drop table short").await?;
    // Of a column that the new shape does not have both sides are computed: they differ in what it has no room for.
    session
        .run("create table person (id int primary key, name varchar(10)); insert into person values (1, 'Jo Meierxx'), (2, 'Al Bo')")
        .await?;
    let parts = r#"{"first": "split_part(name, ' ', 1)", "last": "split_part(name, ' ', 2)"}"#;
    let change = Change::create_with(
        &database,
        "public.person",
        &format!(
            "actions => {}, {}",
            literal("drop column name, add column first text, add column last text"),
            arguments(parts, r#"{"name": "first || ' ' || last"}"#)
        ),
    )
    .await?;
    change.until_ready().await?;
    change.swap().await?;
    session
        .run("update person set last = 'MeierxxYY' where id = 1; update person set last = 'Bi' where id = 2")
        .await?;
    let refusal = session.refusal(&format!("select migrator.rollback(change => {})", change.id)).await?;
    ensure!(refusal.code == "55000" && refusal.detail.contains("(22001"), "{refusal}");
    session.run("update person set last = 'Meieryyy' where id = 1").await?;
    session.refusal(&format!("select migrator.rollback(change => {})", change.id)).await?;
    session.run("update person set last = 'Meieryy' where id = 1").await?;
    change.until_in_step().await?;
    change.rollback().await?;
    let names = session.value("select string_agg(name, ',' order by id) from person").await?;
    ensure!(names == "Jo Meieryy,Al Bi", "{names}");
    change.cancel().await
}

/// Values that are rows themselves, where the settings under which a change was made show them with a zone of many meanings and few digits.
async fn rows_in_a_column_do_not_go_through_text(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "set datestyle = 'SQL, DMY'; set timezone = 'Asia/Kolkata'; set extra_float_digits = 0;
             create type seen as (at timestamptz(3), share float8); create domain looked as seen;
             create table page (id int primary key, v looked, note text);
             insert into page select g, row('2026-01-01 12:00+00', 0.1::float8 + 0.2)::seen from generate_series(1, 3) g;
             create table before as select * from page",
        )
        .await?;
    let change = Change::create_in(
        &database,
        &session,
        "public.page",
        &format!(
            "actions => 'alter column v type seen', {}",
            arguments(r#"{"note": "upper(note)"}"#, r#"{"note": "lower(note)"}"#)
        ),
    )
    .await?;
    change.until_ready().await?;
    let same =
        "select count(*) from page p join before b using (id) where (p.v).at = (b.v).at and (p.v).share = (b.v).share";
    change.swap().await?;
    let anew = |id| {
        ["page", "before"].map(|table| {
            format!("update {table} set v = row('2026-02-01 12:00+00', 0.7::float8 + 0.1)::seen where id = {id}")
        })
    };
    session.run("update page set note = 'SEEN' where id = 1").await?;
    session.run(&anew(2).join(";")).await?;
    ensure!(session.number(same).await? == 3, "values are others in the new shape");
    change.until_in_step().await?;
    change.rollback().await?;
    ensure!(session.number(same).await? == 3, "values are others when they are back");
    session.run(&anew(3).join(";")).await?;
    change.until_in_step().await?;
    change.swap().await?;
    ensure!(session.number(same).await? == 3, "values are others after the second swap");
    change.finish().await
}
