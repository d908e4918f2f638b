//! The commands of the program `migrator`: each does what the function of its name does and says what came of it, a dry
//! run leaves nothing behind, and a wrong word gets an answer that helps.

use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::program::{Outcome, agent, say, terminate};
use migrator_tests::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

for_each_server!(a_change_by_commands, a_small_table_is_not_rewritten_in_place);
for_oldest_and_newest_server!(
    a_dry_run_leaves_nothing_behind,
    changes_named_in_every_way,
    expressions_and_a_table_of_ones_own,
);
for_newest_server!(logs_for_people_and_machines);

async fn a_change_by_commands(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table goods (id int primary key, v text); insert into goods select g, 'v' || g from generate_series(1, 20000) g").await?;
    let altered =
        say(&database, &["alter", "goods", "alter column id type bigint, add column w int", "--strategy", "shadow"])
            .await?
            .fine();
    altered.context("alter")?;
    let status = say(&database, &["status", "--json"]).await?.fine().context("status")?;
    ensure!(status.contains("ready"), "{status}");
    serde_json::from_str::<serde_json::Value>(&status).context("status --json is no JSON")?;
    let listed = say(&database, &["list"]).await?.fine()?;
    ensure!(listed.lines().any(|line| line.contains(" public.goods ") && line.contains(" ready ")), "{listed}");
    let verified = say(&database, &["verify", "goods"]).await?.fine()?;
    ensure!(verified == "public.goods: 20,000 rows compared, 0 differ\n", "{verified}");
    for command in [
        vec!["swap", "goods", "--dry-run"],
        vec!["swap", "goods"],
        vec!["rollback", "goods"],
        vec!["prepare", "goods"],
        vec!["swap", "--latest"],
        vec!["finish", "goods"],
        vec!["doctor"],
    ] {
        say(&database, &command).await?.fine().with_context(|| command.join(" "))?;
    }
    let told = say(&database, &["log", "goods"]).await?.fine()?;
    let document = json(&say(&database, &["log", "goods", "--json"]).await?.fine()?)?;
    let events = session.rows("select kind, message from migrator.log('goods') order by id").await?;
    ensure!(events.len() > 10 && told.lines().count() == events.len(), "{} events in:\n{told}", events.len());
    for (position, event) in events.iter().enumerate() {
        let (kind, message) = (event[0].as_deref().unwrap_or_default(), event[1].as_deref().unwrap_or_default());
        let line = told.lines().nth(position).unwrap_or_default();
        ensure!(
            line.contains(&format!(" {kind} ")) && line.contains(message),
            "{kind} {message} is not told in: {line}"
        );
        ensure!(document["events"][position]["message"] == *message, "{document}");
    }
    ensure!(session.value("select pg_typeof(id) from goods limit 1").await? == "bigint", "the change is not there");
    ensure!(session.number("select count(*) from goods").await? == 20_000, "rows lost");
    nothing_left_behind(&database).await?;

    // Answers that are no: nothing to swap; and errors: nobody there.
    ensure!(say(&database, &["swap", "goods"]).await?.code != 0, "swap without a change says yes");
    let nobody = say(&database, &["status", "--database", "postgresql://127.0.0.1:1/none"]).await?;
    ensure!(nobody.code == 2 && !nobody.stderr.is_empty(), "exit code {}", nobody.code);

    // A table that does not exist, for each kind of command that takes one.
    session.run("create schema \"Sales\"; create table \"Sales\".\"Orders; --\" ()").await?;
    let place = format!("It was looked for in database {}, search_path \"$user\", public.", database.name);
    for (name, message, hint) in [
        ("nothing", "relation \"nothing\" does not exist", "Write it as in SQL: with its schema, and in double quotes"),
        ("orders; --", "", "There is: \"Sales\".\"Orders; --\". Write the name like that"),
        ("nowhere.nothing", "", "Write it as in SQL"),
    ] {
        for command in [
            &["alter", name, "add column a int"][..],
            &["alter", name, "add column a int", "--dry-run"],
            &["alter", "goods", "--shadow", name],
            &["swap", name],
            &["log", name],
        ] {
            let Outcome { code, stderr, .. } = say(&database, command).await?;
            let lines: Vec<&str> = stderr.lines().collect();
            ensure!(code == 2 && lines.len() == 4, "{command:?} ends with {code} and says:\n{stderr}");
            ensure!(lines[0].starts_with("error: ") && lines[0].ends_with(message), "{command:?}: {}", lines[0]);
            ensure!(lines[1].starts_with("SQLSTATE: "), "{command:?}: {}", lines[1]);
            ensure!(lines[2] == format!("DETAIL: {place}"), "{command:?}: {}", lines[2]);
            ensure!(lines[3].starts_with(&format!("HINT: {hint}")), "{command:?}: {}", lines[3]);
        }
    }
    let refused = json(&say(&database, &["alter", "nothing", "add column a int", "--json"]).await?.stdout)?;
    ensure!(refused["error"]["sqlstate"] == "42P01" && refused["error"]["hint"].is_string(), "{refused}");
    nothing_left_behind(&database).await
}

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("no JSON: {text}"))
}

/// However small: under a lock that stops everybody a table is rewritten for those only who ask for it.
async fn a_small_table_is_not_rewritten_in_place(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run("create table small (id int primary key); insert into small select g from generate_series(1, 50) g")
        .await?;
    // This transaction would find the table empty after a rewrite.
    let old = database.connect_as("postgres", "old").await?;
    old.run("begin isolation level repeatable read; select 1").await?;
    let file = session.value("select pg_relation_filenode('small')").await?;
    say(&database, &["alter", "small", "add column note text"]).await?.fine().context("catalogue work")?;
    ensure!(session.number("select count(*) from migrator.history").await? == 0, "a column was added through a shadow");
    say(&database, &["alter", "small", "alter column id type bigint"]).await?.fine().context("a new type")?;
    ensure!(session.value("select pg_relation_filenode('small')").await? == file, "the table was rewritten in place");
    ensure!(old.number("select count(*) from small").await? == 50, "an older transaction finds the table empty");
    old.run("commit").await?;
    ensure!(session.value("select state from migrator.status").await? == "ready", "there should be a change, ready");
    say(&database, &["cancel", "small"]).await?.fine().context("cancel")?;
    say(&database, &["alter", "small", "alter column id type bigint", "--strategy", "in-place"])
        .await?
        .fine()
        .context("in place")?;
    ensure!(session.value("select pg_typeof(id) from small limit 1").await? == "bigint", "the change is not there");
    nothing_left_behind(&database).await
}

/// Catalogues that a command could change, each with the column that says whose row it is.
const CATALOGUES: [(&str, &str); 17] = [
    ("pg_attrdef", "oid"),
    ("pg_attribute", "attrelid"),
    ("pg_class", "oid"),
    ("pg_constraint", "oid"),
    ("pg_depend", "objid"),
    ("pg_description", "objoid"),
    ("pg_event_trigger", "oid"),
    ("pg_index", "indexrelid"),
    ("pg_namespace", "oid"),
    ("pg_policy", "oid"),
    ("pg_proc", "oid"),
    ("pg_publication", "oid"),
    ("pg_rewrite", "oid"),
    ("pg_shdepend", "objid"),
    ("pg_statistic_ext", "oid"),
    ("pg_trigger", "oid"),
    ("pg_type", "oid"),
];

/// A fingerprint of each catalogue, table and sequence, with the place of each row, so that one that was written back as it
/// was shows too.
async fn everything(session: &Session) -> Result<BTreeMap<String, String>> {
    let mut parts = Vec::new();
    for (catalogue, whose) in CATALOGUES {
        // Without what VACUUM and ANALYZE write into it.
        let row = match catalogue {
            "pg_class" => {
                "(to_jsonb(t) - '{relpages,reltuples,relallvisible,relallfrozen,relfrozenxid,relminmxid,\
                 relhasindex,relhasrules,relhastriggers}'::text[])::text"
            }
            _ => "concat(t.ctid, t.xmin, t)",
        };
        parts.push(format!("select '{catalogue}' k, {row} r from pg_catalog.{catalogue} t where {whose} >= 16384"));
    }
    let relations = "select oid::regclass, relkind = 'S' from pg_class where relkind in ('r', 'S')
                     and relnamespace::regnamespace::text !~ '^(pg_|information_schema)'";
    for relation in session.rows(relations).await? {
        let (name, is_sequence) = (relation[0].clone().unwrap_or_default(), relation[1].as_deref() == Some("t"));
        let row = if is_sequence { "concat(t.last_value, t.is_called)" } else { "concat(t.ctid, t.xmin, t)" };
        parts.push(format!("select {}, {row} from {name} t", session::literal(&name)));
    }
    let all = format!(
        "select k, count(*) || ' ' || md5(string_agg(r, '' order by r)) from ({}) p group by k",
        parts.join(" union all ")
    );
    let rows = session.rows(&all).await?.into_iter();
    Ok(rows.map(|row| (row[0].clone().unwrap_or_default(), row[1].clone().unwrap_or_default())).collect())
}

async fn a_dry_run_leaves_nothing_behind(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table dry (id int primary key, v text); insert into dry select g, 'v' from generate_series(1, 5000) g;
             create table made (like dry including all); alter table made alter id type bigint",
        )
        .await?;
    let show = async |command: &[&str], code: i32, shown: &str| -> Result<()> {
        let before = everything(&session).await?;
        let outcome = say(&database, &[command, &["--dry-run"]].concat()).await?;
        let after = everything(&session).await?;
        let changed: Vec<_> = before.iter().filter(|(name, was)| after.get(*name) != Some(was)).collect();
        ensure!(changed.is_empty() && before.len() == after.len(), "{command:?} --dry-run changes {changed:?}");
        let Outcome { code: ended, stdout, stderr } = outcome;
        ensure!(ended == code, "{command:?} --dry-run ends with {ended}: {stdout}{stderr}");
        ensure!(
            format!("{stdout}{stderr}").contains(shown),
            "{command:?} --dry-run shows no {shown}: {stdout}{stderr}"
        );
        Ok(())
    };
    // What is shown is what would be done: in place, or by a shadow.
    show(&["alter", "dry", "add column w int"], 0, "add column w int").await?;
    show(&["alter", "dry", "add column w int", "--json"], 0, "\"step\":\"in_place\"").await?;
    show(&["alter", "dry", "alter column id type bigint"], 0, "migrator_shadow_").await?;
    show(&["alter", "dry", "add column w int", "--strategy", "shadow", "--json"], 0, "migrator_shadow_").await?;
    show(&["alter", "dry", "--shadow", "made"], 0, "migrator_shadow_").await?;
    show(&["alter", "dry", "drop column nothing"], 2, "nothing").await?;

    let change = Change::create(&database, "public.dry", "alter column id type bigint").await?;
    show(&["swap", "dry"], 2, "ready").await?;
    change.until_ready().await?;
    session.run("update dry set v = 'w' where id < 100").await?;
    show(&["swap"], 0, "public.dry").await?;
    show(&["cancel"], 0, "would be cancelled").await?;
    show(&["finish"], 1, "cannot be finished").await?;
    show(&["rollback"], 2, "migrator.cancel").await?;
    show(&["cleanup", "--before", "tomorrow"], 0, "no change").await?;
    let old = database.connect_as("postgres", "older").await?;
    old.run("begin isolation level repeatable read; select 1").await?;
    change.swap().await?;
    // What would be in the way of the call is in the way of its dry run.
    show(&["finish"], 2, "older").await?;
    show(&["cleanup", "--before", "tomorrow"], 2, "older").await?;
    old.run("commit").await?;
    session.run("update dry set v = 'x' where id < 100").await?;
    show(&["rollback"], 0, "public.dry").await?;
    show(&["finish"], 0, "would be finished").await?;
    show(&["cancel"], 1, "cannot be cancelled").await?;
    show(&["cleanup", "--before", "tomorrow"], 0, "would be finished").await?;
    ensure!(change.state().await? == "swapped", "{}", change.told().await?);
    change.finish().await?;
    nothing_left_behind(&database).await
}

async fn changes_named_in_every_way(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let mut ids = Vec::new();
    for table in ["one", "two"] {
        session.run(&format!("create table {table} (id int primary key); insert into {table} values (1), (2)")).await?;
        let change = Change::create(&database, &format!("public.{table}"), "alter column id type bigint").await?;
        ids.push((
            change.id.to_string(),
            session.value(&format!("select started_ms from migrator.status where change = {}", change.id)).await?,
        ));
    }
    let [(one, one_ms), (two, two_ms)] = &ids[..] else { bail!("there are two") };
    let states = async || session.value("select string_agg(state, ' ' order by change) from migrator.history").await;

    for command in ["pause", "resume", "prepare", "verify", "rollback", "finish", "cancel"] {
        let Outcome { code, stderr, .. } = say(&database, &[command]).await?;
        ensure!(
            code == 2 && stderr.contains(&format!("{one} (public.one), {two} (public.two)")),
            "{command}: {stderr}"
        );
        ensure!(stderr.contains("HINT: See them with: migrator list --all"), "{command}: {stderr}");
    }
    ensure!(states().await? == "created created", "a change was picked: {}", states().await?);
    say(&database, &["pause", "--change", two]).await?.fine()?;
    ensure!(states().await? == "created paused", "pause --change: {}", states().await?);
    say(&database, &["pause", "--timestamp", one_ms]).await?.fine()?;
    ensure!(states().await? == "paused paused", "pause --timestamp: {}", states().await?);
    say(&database, &["resume", "--timestamp", two_ms]).await?.fine()?;
    let resumed = json(&say(&database, &["resume", "--change", one, "--json"]).await?.fine()?)?;
    ensure!(resumed["state"] == "created" && resumed["relation"] == "public.one", "{resumed}");
    ensure!(states().await? == "created created", "resume: {}", states().await?);
    for absent in [["--change", "4711"], ["--timestamp", "4711"]] {
        let Outcome { code, stderr, .. } = say(&database, &[&["pause"][..], &absent].concat()).await?;
        ensure!(code == 2 && stderr.contains("4711") && stderr.contains("HINT: "), "{stderr}");
    }
    say(&database, &["prepare", "--change", two]).await?.fine()?;
    ensure!(states().await? == "created ready", "prepare --change: {}", states().await?);
    say(&database, &["prepare", "--timestamp", one_ms]).await?.fine()?;

    // One for both.
    let swapped = say(&database, &["swap"]).await?.fine()?;
    ensure!(states().await? == "swapped swapped" && swapped.matches(" yes").count() == 2, "{swapped}");
    say(&database, &["rollback", "--timestamp", two_ms]).await?.fine()?;
    say(&database, &["prepare", "--timestamp", two_ms]).await?.fine()?;
    say(&database, &["swap", "--change", two]).await?.fine()?;
    let none = say(&database, &["cleanup", "--before", "2001-01-01"]).await?.fine()?;
    ensure!(none == "no change was swapped before then\n" && states().await? == "swapped swapped", "{none}");
    let early = session.value(&format!("select swapped_at::text from migrator.status where change = {two}")).await?;
    let some = json(&say(&database, &["cleanup", "--before", &early, "--json"]).await?.fine()?)?;
    ensure!(some["finished"][0]["relation"] == "public.one", "{some}");
    ensure!(states().await? == "finished swapped", "cleanup --before: {}", states().await?);
    say(&database, &["cleanup", "--before", "tomorrow"]).await?.fine()?;
    ensure!(states().await? == "finished finished", "cleanup: {}", states().await?);
    let all = json(&say(&database, &["list", "--all", "--json"]).await?.fine()?)?;
    ensure!(all["changes"][1]["state"] == "finished" && all["changes"][1]["timestamp"].is_null(), "{all}");
    ensure!(say(&database, &["list"]).await?.fine()? == "no open change\n", "list shows what is over");
    let of_one = say(&database, &["status", "--timestamp", one_ms]).await?.fine()?;
    ensure!(of_one.contains("public.one") && of_one.contains("finished"), "{of_one}");
    ensure!(say(&database, &["status"]).await?.code == 1, "status without a change is a no");
    nothing_left_behind(&database).await
}

async fn expressions_and_a_table_of_ones_own(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run("create table people (id int primary key, first text, last text); insert into people values (1, 'Ada', 'Lovelace')")
        .await?;
    let forward = r#"{"name": "first || ' ' || last"}"#;
    let back = r#"{"first": "split_part(name, ' ', 1)", "last": "split_part(name, ' ', 2)"}"#;
    let actions = "add column name text, drop column first, drop column last";
    let with = ["--transform", forward, "--reverse", back, "--swap"];
    say(&database, &[&["alter", "people", actions][..], &with].concat()).await?.fine()?;
    ensure!(session.value("select people::text from people").await? == "(1,\"Ada Lovelace\")", "--transform");
    session.run("insert into people values (2, 'Grace Hopper')").await?;
    say(&database, &["rollback", "people"]).await?.fine()?;
    let names = "select string_agg(id || first || last, ' ' order by id) from people";
    ensure!(session.value(names).await? == "1AdaLovelace 2GraceHopper", "--reverse: {}", session.value(names).await?);
    say(&database, &["cancel", "people"]).await?.fine()?;

    session.run("create table \"People, new\" (id bigint primary key, name text not null)").await?;
    let with = ["--transform", forward, "--reverse", back, "--no-swap"];
    let made = [&["alter", "people", "--shadow", "\"People, new\""][..], &with].concat();
    let ready = say(&database, &made).await?.fine()?;
    ensure!(ready.contains("is ready; go over to it with: migrator swap --change"), "{ready}");
    say(&database, &["swap", "people"]).await?.fine()?;
    let names = "select string_agg(id || name, ' ' order by id) from people";
    ensure!(session.value(names).await? == "1Ada Lovelace 2Grace Hopper", "--shadow: {}", session.value(names).await?);
    say(&database, &["finish", "people"]).await?.fine()?;

    for wrong in ["{", "[]", "\"lower(name)\""] {
        let Outcome { code, stderr, .. } = say(&database, &["alter", "people", "--transform", wrong]).await?;
        ensure!(code == 2 && stderr.contains("--transform"), "{wrong}: {stderr}");
    }
    nothing_left_behind(&database).await
}

async fn logs_for_people_and_machines(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table told (id int primary key); insert into told values (1)").await?;
    let change = Change::create(&database, "public.told", "alter column id type bigint").await?;
    let mut follow = agent(&database)?;
    follow.args(["log", "told", "--follow", "--json"]).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let follow = follow.spawn()?;

    // A daemon whose log goes to a file: documents and nothing else, and not a word anywhere else.
    let file = database.cluster().folder("logs")?.join(format!("{}.log", database.name));
    let mut logged = agent(&database)?;
    logged.args(["agent", "--log-format", "json", "--log-file"]).arg(&file).kill_on_drop(true);
    let logged = logged.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    change.wait_for("ready").await?;
    terminate(&logged).await?;
    let output = tokio::time::timeout(Duration::from_secs(20), logged.wait_with_output()).await??;
    ensure!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    let text = std::fs::read_to_string(&file)?;
    let messages: Vec<String> =
        text.lines().map(|line| Ok(json(line)?["message"].to_string())).collect::<Result<_>>()?;
    for expected in ["agent started", "driving a change", "agent stopped"] {
        ensure!(messages.iter().any(|message| message.contains(expected)), "no {expected} in:\n{text}");
    }
    ensure!(text.lines().all(|line| line.contains("\"timestamp\"") && line.contains("\"level\"")), "{text}");

    // On stderr likewise, and stdout stays data.
    let verified = say(&database, &["verify", "told", "-vv", "--log-format", "json", "--json"]).await?;
    ensure!(json(&verified.stdout)?["verify"]["mismatched"] == 0, "{}", verified.stdout);
    for line in verified.stderr.lines() {
        json(line)?;
    }
    let nowhere = say(&database, &["list", "--log-file", "/nowhere/log"]).await?;
    ensure!(nowhere.code == 2 && nowhere.stderr.contains("cannot write the log to /nowhere/log"), "{}", nowhere.stderr);

    // Whoever follows hears the end, and is done.
    change.cancel().await?;
    let output = tokio::time::timeout(Duration::from_secs(20), follow.wait_with_output()).await;
    let output = output.context("log --follow goes on after the end")??;
    ensure!(output.status.success(), "log --follow ends with {}", output.status);
    let followed: Vec<i64> = String::from_utf8(output.stdout)?
        .lines()
        .map(|line| json(line)?["event"]["id"].as_i64().with_context(|| line.to_owned()))
        .collect::<Result<_>>()?;
    let ids = "select string_agg(id::text, ' ' order by id) from migrator.log(change => 1)";
    let ids = session.value(ids).await?;
    ensure!(followed.iter().map(i64::to_string).collect::<Vec<_>>().join(" ") == ids, "{followed:?} of {ids}");
    nothing_left_behind(&database).await
}
