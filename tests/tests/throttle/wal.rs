//! WAL that slots and the archive keep, and vacuums of the table.

use crate::watched::Watched;
use migrator_tests::*;
use std::sync::Arc;

async fn cluster(server: Server) -> Result<Arc<Cluster>> {
    server
        .cluster(&[
            ("archive_mode", "on"),
            ("archive_command", "true"),
            ("wal_keep_size", "0"),
            ("autovacuum_naptime", "1"),
            ("autovacuum_vacuum_threshold", "2147483647"),
            ("autovacuum_vacuum_insert_threshold", "-1"),
            ("autovacuum_analyze_threshold", "2147483647"),
            ("autovacuum_vacuum_cost_delay", "100"),
            ("autovacuum_vacuum_cost_limit", "1"),
        ])
        .await
}

pub async fn wal_that_cannot_go_and_vacuums(server: Server) -> Result<()> {
    tell(Watched::of(&cluster(server).await?).await?).await
}

pub async fn wal_and_vacuums_while_rows_are_upgraded(server: Server) -> Result<()> {
    tell(Watched::of_upgrades(&cluster(server).await?).await?).await
}

async fn tell(watched: Watched) -> Result<()> {
    let session = &watched.session;
    const WRITE: &str =
        "create table written as select repeat('x', 100) from generate_series(1, 10000); drop table written";
    const SWITCH: &str = "create table written (); drop table written; select pg_switch_wal()";

    // A slot whose reader does not come back keeps WAL …
    watched.limit("'slot_wal', '1 MB'").await?;
    session.run("select pg_create_physical_replication_slot('forgotten', true)").await?;
    watched.until_raised_by(WRITE, "slot_wal", "hold", "nobody reads from replication slot forgotten").await?;
    watched.limit("'slot_wal', '1 MB', ignoring => '{forgotten}'").await?;
    watched.until_over("slot_wal").await?;
    watched.limit("'slot_wal', '1000 GB'").await?;
    watched.until_over("slot_wal").await?;
    // … until it loses what it needs.
    watched.setting("max_slot_wal_keep_size", "16").await?;
    watched.until_raised_by(SWITCH, "slot_wal", "hold", "slot forgotten is about to lose WAL").await?;
    watched.until_raised_by("checkpoint", "slot_wal", "slow", "slot forgotten has lost WAL").await?;
    session.run("select pg_drop_replication_slot('forgotten')").await?;
    watched.until_over("slot_wal").await?;

    // The archive does not take it.
    watched.limit("'archive_ready', '2', '0'").await?;
    watched.setting("archive_command", "false").await?;
    watched.until_raised_by(SWITCH, "archive_ready", "hold", "more than 2 WAL files wait to be archived").await?;
    watched.setting("archive_command", "true").await?;
    session.run(SWITCH).await?;
    watched.until_over("archive_ready").await?;

    // More of it than max_wal_size is made for.
    watched.limit("'requested_checkpoints', '1'").await?;
    watched.until_raised_by("checkpoint", "requested_checkpoints", "slow", "checkpoints were requested").await?;
    watched.limit("'requested_checkpoints'").await?;
    watched.until_over("requested_checkpoints").await?;

    // A vacuum of the table, and one that may not be put off: for a while.
    let vacuum = watched.database.connect_as("postgres", "vacuum").await?;
    vacuum.run("set vacuum_cost_delay = 100; set vacuum_cost_limit = 1").await?;
    let vacuum = tokio::spawn(async move { vacuum.run("vacuum busy").await });
    watched.until_raised("vacuum", "slow", "table public.busy is being vacuumed").await?;
    session.run("select pg_cancel_backend(pid) from pg_stat_activity where application_name = 'vacuum'").await?;
    ensure!(vacuum.await?.is_err(), "the vacuum was over by itself: this tests nothing");
    watched.until_over("vacuum").await?;
    session
        .run(
            "create procedure burn(ids int) language plpgsql as $$
             begin for i in 1..ids loop perform pg_current_xact_id(); commit; end loop; end $$",
        )
        .await?;
    session.run("call burn(101000)").await?;
    watched.until_raised("vacuum", "hold", "table public.busy is being vacuumed to prevent wraparound").await?;
    watched.limit("'vacuum', '1 ms'").await?;
    watched.until_raised("vacuum", "slow", "to prevent wraparound for more than").await?;
    watched.limit("'vacuum'").await?;
    watched.until_raised("vacuum", "hold", "to prevent wraparound").await?;
    watched.setting("autovacuum_vacuum_cost_delay", "0").await?;
    session
        .run(
            "select pg_terminate_backend(pid) from pg_stat_activity where query like 'autovacuum: VACUUM public.busy%'",
        )
        .await?;
    watched.until_over("vacuum").await?;
    watched.end().await
}
