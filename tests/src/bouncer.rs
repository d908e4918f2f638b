//! PgBouncer before a database, where it is installed.

use crate::cluster::as_server_user;
use crate::program::find;
use crate::{Database, Result, Session, SqlError, story};
use anyhow::ensure;
use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// A running pooler. It ends with the value.
pub struct Bouncer {
    child: Child,
    port: u16,
    database: String,
}

impl Bouncer {
    /// Starts one that pools sessions or transactions. None, and the test is noted as skipped, where it is not installed.
    pub async fn start(database: &Database, mode: &str) -> Result<Option<Bouncer>> {
        let Some(program) = find("pgbouncer") else {
            story::skipped(&format!("pgbouncer {mode} on {}", database.major()), "pgbouncer is not installed");
            return Ok(None);
        };
        let folder = database.cluster().folder(&format!("pgbouncer-{}", database.name))?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let conf = folder.join("pgbouncer.ini");
        std::fs::write(
            &conf,
            format!(
                "[databases]\n* = host={} port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
                 unix_socket_dir =\nauth_type = any\npool_mode = {mode}\ndefault_pool_size = 5\nmax_client_conn = 50\n\
                 logfile = {folder}/log\npidfile = {folder}/pid\nignore_startup_parameters = extra_float_digits\n",
                database.cluster().socket_folder().display(),
                database.cluster().port,
                folder = folder.display()
            ),
        )?;
        let child = Command::from(as_server_user(&program))
            .arg(&conf)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let bouncer = Bouncer { child, port, database: database.name.clone() };
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = bouncer.connect().await {
            ensure!(Instant::now() < deadline, "pgbouncer does not answer: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Some(bouncer))
    }

    /// A client's session.
    pub async fn connect(&self) -> Result<Session, SqlError> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").password("any").dbname(&self.database);
        Session::open_with(config).await
    }

    /// The environment with which programs find it.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("PGHOST", "127.0.0.1".to_owned()),
            ("PGPORT", self.port.to_string()),
            ("PGUSER", "postgres".to_owned()),
            ("PGPASSWORD", "any".to_owned()),
            ("PGDATABASE", self.database.clone()),
        ]
    }

    /// Ends it, clients or not.
    pub async fn stop(mut self) -> Result<()> {
        self.child.start_kill()?;
        self.child.wait().await?;
        Ok(())
    }
}
