//! Standbys that fall behind, that commits wait for, and that are lost.

use crate::watched::{Watched, until};
use migrator_tests::*;
use std::time::Duration;

pub async fn standbys(server: Server) -> Result<()> {
    let primary = server.cluster(&[("autovacuum", "off")]).await?;
    let watched = Watched::of(&primary).await?;
    tell(&primary, watched).await
}

pub async fn standbys_while_rows_are_upgraded(server: Server) -> Result<()> {
    let primary = server.cluster(&[("autovacuum", "off")]).await?;
    let watched = Watched::of_upgrades(&primary).await?;
    tell(&primary, watched).await
}

async fn tell(primary: &Cluster, watched: Watched) -> Result<()> {
    let session = &watched.session;
    let standby = primary.standby().await?;
    let there = standby.connect("postgres").await?;
    until(session, "select count(*) from pg_stat_replication where state = 'streaming'").await?;
    watched.until_over("replay_lag").await?;
    let name = session.value("select application_name from pg_stat_replication").await?;

    // It stops to replay. What it has received is not what its readers see.
    watched.limit("'replay_lag', '500 ms', '200 ms'").await?;
    there.run("select pg_wal_replay_pause()").await?;
    until(&there, "select count(*) where pg_get_wal_replay_pause_state() = 'paused'").await?;
    watched
        .until_raised_by(
            "create table written (); drop table written",
            "replay_lag",
            "hold",
            &format!("standby {name}/local fell more than"),
        )
        .await?;
    there.run("select pg_wal_replay_resume()").await?;
    watched.until_over("replay_lag").await?;
    watched.limit("'replay_lag', '60 s'").await?;

    // Commits wait for one that is not there; ours must not, or nobody could say why.
    watched.driver.run("set synchronous_commit = on").await?;
    watched.setting("synchronous_standby_names", &name).await?;
    watched.until_over("synchronous_standby").await?;
    watched.setting("synchronous_standby_names", "FIRST 2 (a, *)").await?;
    let held = watched.until_raised("synchronous_standby", "hold", "asks for 2 standby(s), of which 1 are there");
    tokio::time::timeout(Duration::from_secs(30), held).await.context("the hold itself waits for the standby")??;
    if !watched.upgrades() {
        let by_hand = watched.driver.row("select done, reason, wait_ms from migrator.copy_batch('busy')");
        let by_hand = tokio::time::timeout(Duration::from_secs(30), by_hand).await.context("so does copy_batch")??;
        let held = by_hand[0] == "f" && by_hand[1].contains("of which 1 are there") && by_hand[2] == "1000";
        ensure!(held, "{by_hand:?}");
    }
    ensure!(
        watched.driver.value("show synchronous_commit").await? == "on",
        "the session was left with another setting"
    );
    watched.setting("synchronous_standby_names", "").await?;
    watched.until_over("synchronous_standby").await?;

    // It goes away, and comes back.
    let conninfo = there.value("select current_setting('primary_conninfo')").await?;
    standby.cut_off().await?;
    watched.until_raised("lost_standby", "hold", &format!("standby {name}/local was streaming")).await?;
    // Behind by then, and it stays so: it is held on for what it has not replayed.
    there.run("alter system set recovery_min_apply_delay = '1 h'").await?;
    session.run("create table written (); drop table written").await?;
    watched.limit("'replay_lag', '500 ms', '200 ms'").await?;
    there.run(&format!("alter system set primary_conninfo = {}", session::literal(&conninfo))).await?;
    there.run("select pg_reload_conf()").await?;
    watched.until_over("lost_standby").await?;
    watched.until_raised("replay_lag", "hold", &format!("standby {name}/local fell more than")).await?;
    there.run("alter system reset recovery_min_apply_delay").await?;
    there.run("select pg_reload_conf()").await?;
    watched.until_over("replay_lag").await?;
    watched.limit("'replay_lag', '60 s'").await?;
    // Or it does not, and nobody expects it.
    standby.cut_off().await?;
    watched.until_raised("lost_standby", "hold", "was streaming within the last 1 h").await?;
    watched.limit(&format!("'lost_standby', ignoring => '{{{name}}}'")).await?;
    watched.until_over("lost_standby").await?;
    watched.limit("'lost_standby'").await?;
    watched.until_raised("lost_standby", "hold", "was streaming").await?;
    watched.limit("'lost_standby', '1 ms'").await?;
    watched.until_over("lost_standby").await?;
    watched.end().await
}

/// A standby that says which rows its queries need keeps VACUUM back here, and a slot does when it is gone.
pub async fn queries_on_standbys(server: Server) -> Result<()> {
    const WRITE: &str = "create table written (); drop table written";
    let primary = server.cluster(&[("autovacuum", "off")]).await?;
    let watched = Watched::of_upgrades(&primary).await?;
    let session = &watched.session;
    let standby = primary.standby().await?;
    let there = standby.connect("postgres").await?;
    for setting in ["hot_standby_feedback = on", "wal_receiver_status_interval = 1", "max_standby_streaming_delay = -1"]
    {
        there.run(&format!("alter system set {setting}")).await?;
    }
    there.run("select pg_reload_conf()").await?;
    until(session, "select count(*) from pg_stat_replication where state = 'streaming'").await?;
    let name = session.value("select application_name from pg_stat_replication").await?;
    let reader = standby.connect("postgres").await?;

    // What the standby says comes once a second, and is the same meanwhile.
    watched.limit("'snapshot_age', '4 s', '3 s'").await?;
    watched.limit(&format!("'lost_standby', ignoring => '{{{name}}}'")).await?;
    let query = "begin isolation level repeatable read; select count(*) from pg_class";
    reader.run(query).await?;
    watched
        .until_raised_by(
            WRITE,
            "snapshot_age",
            "slow",
            &format!("a query on standby {name}/local has kept its snapshot"),
        )
        .await?;
    reader.run("commit").await?;
    watched.until_over("snapshot_age").await?;

    session.run("select pg_create_physical_replication_slot('kept', true)").await?;
    there.run("alter system set primary_slot_name = 'kept'").await?;
    there.run("select pg_reload_conf()").await?;
    until(session, "select count(*) from pg_replication_slots where active").await?;
    reader.run(query).await?;
    watched
        .until_raised_by(WRITE, "snapshot_age", "slow", "a query on the standby of replication slot kept has kept")
        .await?;
    standby.cut_off().await?;
    watched.until_raised("snapshot_age", "slow", "replication slot kept, whose standby is gone, has kept").await?;
    until(session, "select count(*) from pg_replication_slots where not active").await?;
    session.run("select pg_drop_replication_slot('kept')").await?;
    watched.until_over("snapshot_age").await?;
    watched.end().await
}
