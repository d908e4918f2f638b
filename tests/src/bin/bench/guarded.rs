//! What the guard costs an application's UPDATE of one row.

use super::upgrades::{EXPRESSION, articles, blocks};
use super::{Line, median};
use migrator_tests::program::postgresql;
use migrator_tests::*;

/// An UPDATE of one row with and without the guard: of a column that no upgrade reads, and of one that an output is made
/// from, which without it the statement writes itself.
///
/// Two tables with the same rows, one with the guard, whose statements are done in turn: a commit takes most of the time of each, and
/// from one second to the next that differs by more than what is measured.
pub async fn measure(database: &Database, session: &Session, rounds: usize) -> Result<Vec<Line>> {
    for table in ["article", "plain"] {
        articles(session, table, 100_000).await?;
        if table == "article" {
            blocks(session, table).await?;
            session.run("call migrator.run_upgrades('article')").await?;
        } else {
            session.run(&format!("update plain set content2 = {EXPRESSION}, applied_upgrades = '{{blocks}}'")).await?;
        }
        session.run(&format!("vacuum (freeze, analyze) {table}")).await?;
        session.run(&format!("alter table {table} set (fillfactor = 50)")).await?;
        session.run(&format!("vacuum full {table}")).await?;
    }
    const INPUT: &str = "content = 'content of ' || :id";
    let statements = [
        "update article set live = not live".to_string(),
        "update plain set live = not live".to_string(),
        format!("update article set {INPUT}"),
        format!("update plain set {INPUT}, content2 = to_jsonb('content of ' || :id)"),
    ];
    let mut took: [Vec<f64>; 4] = Default::default();
    // What a statement leaves to the one after it, each leaves to each.
    for order in [[0, 1, 2, 3], [3, 2, 1, 0]].repeat(rounds.max(3) * 3) {
        let latencies = by_pgbench(database, order.map(|which| &statements[which])).await?;
        for (which, latency) in order.into_iter().zip(latencies) {
            took[which].push(latency);
        }
    }
    session.run("drop table plain").await?;
    let [with, without, derived, by_hand] = took.map(|all| median(&all));
    Ok(vec![
        Line {
            name: "UPDATE of a row, with guard / without",
            ours: with,
            theirs: Some(without),
            unit: "µs",
            limit: 1.1,
            note:
                "by pgbench, one client, statement by statement in turn in two tables; a column that no upgrade reads"
                    .into(),
        },
        Line {
            name: "UPDATE of an input, output by guard / by the statement",
            ours: derived,
            theirs: Some(by_hand),
            unit: "µs",
            limit: f64::INFINITY,
            note: "the same; without the guard the statement writes both columns".into(),
        },
    ])
}

/// Two seconds of statements, each with a row of its own, one after the other: the mean latency of each.
async fn by_pgbench(database: &Database, statements: [&String; 4]) -> Result<Vec<f64>> {
    let script = tempfile::NamedTempFile::new()?;
    let lines: Vec<String> =
        statements.iter().map(|sql| format!("\\set id random(1, 100000)\n{sql} where id = :id;\n")).collect();
    std::fs::write(script.path(), lines.concat())?;
    let mut command = postgresql(database, "pgbench");
    command
        .env("PGOPTIONS", "-c synchronous_commit=off")
        .args(["-n", "-r", "-M", "prepared", "-c", "1", "-T", "2", "-f"])
        .arg(script.path());
    let said = program::run(&mut command).await?.fine()?;
    let latencies = said.lines().filter(|line| line.contains(" where id = :id")).map(|line| {
        let milliseconds = line.split_whitespace().next().unwrap_or_default();
        Ok(milliseconds.parse::<f64>()? * 1000.0)
    });
    let latencies: Vec<f64> = latencies.collect::<Result<_>>()?;
    ensure!(latencies.len() == statements.len(), "pgbench tells the latency of each statement: {said}");
    Ok(latencies)
}
