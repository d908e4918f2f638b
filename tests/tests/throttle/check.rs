//! A check by HTTP that the agent asks.

use crate::watched::Watched;
use migrator_tests::program::daemon;
use migrator_tests::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

pub async fn a_check_by_http(server: Server) -> Result<()> {
    let cluster = server.cluster(&[("autovacuum", "off")]).await?;
    let watched = Watched::of_upgrades(&cluster).await?;
    let session = &watched.session;
    let status = Arc::new(AtomicU16::new(503));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://127.0.0.1:{}/ready", listener.local_addr()?.port());
    let answers = Arc::clone(&status);
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let answer = format!(
                "HTTP/1.1 {} said\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                answers.load(Ordering::Relaxed)
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });

    // The agent holds itself, and with it everybody.
    let pending = "select count(*) from busy where length is null";
    session.run("update busy set v = v where id > 200").await?;
    let mut agent = daemon(&watched.database, &["--http-check", &format!("{url}?token=s3cret")])?;
    watched.until_raised("http_check", "hold", &format!("the check {url} says no: it answered 503")).await?;
    // What this session had in hand is anybody's.
    session.run("update migrator.sweep_chunk set worker = null").await?;
    let before = session.number(pending).await?;
    ensure!(before > 0, "all was done before anybody asked");
    status.store(204, Ordering::Relaxed);
    let deadline = Instant::now() + change::PATIENCE;
    while session.number(pending).await? > 0 {
        ensure!(Instant::now() < deadline, "all is well, and yet {} rows wait", session.value(pending).await?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Where nobody answers, that is a no.
    serving.abort();
    let said =
        format!("select count(*) from migrator.http_check where address = '{url}' and said like 'it cannot be asked%'");
    watched.until(&said).await?;
    agent.start_kill()?;
    agent.wait().await?;
    Ok(())
}

pub async fn a_check_that_may_not_be_told(server: Server) -> Result<()> {
    let database = server.database().await?;
    let outcome = program::say(&database, &["agent", "--http-check", "status.example/ready"]).await?;
    ensure!(
        outcome.code == 2 && outcome.stderr.contains("is not an http:// or https:// address"),
        "{}",
        outcome.stderr
    );
    Ok(())
}
