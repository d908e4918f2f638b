//! Which PostgreSQL servers there are to test with: those that `tools/servers` lists.

use crate::{Cluster, Database, Result};
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};
use tokio::sync::Mutex;

/// The versions that the tests are written for, oldest first.
pub const MAJORS: [u32; 3] = [15, 16, 18];

/// One installed PostgreSQL.
#[derive(Debug, Clone)]
pub struct Server {
    /// 15, 16, 18.
    pub major: u32,
    /// The folder with postgres, psql, pg_dump, pgbench.
    pub bin: PathBuf,
}

/// The top folder of the project.
pub fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies one folder below the top")
}

/// Where builds, servers and results are.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => top().join(folder),
        None => top().join("target"),
    }
}

impl Server {
    /// Every server that is set up, oldest first.
    pub fn all() -> Result<Vec<Server>> {
        let output = Command::new(top().join("tools/servers")).output().context("tools/servers does not run")?;
        String::from_utf8(output.stdout)?
            .lines()
            .map(|line| {
                let (major, pg_config) = line.split_once(' ').context("tools/servers: MAJOR PG_CONFIG expected")?;
                let bin = Path::new(pg_config).parent().context("pg_config lies in a folder")?.to_owned();
                Ok(Server { major: major.parse()?, bin })
            })
            .collect()
    }

    /// The server of one version, if it is set up.
    pub fn of(major: u32) -> Result<Option<Server>> {
        Ok(Server::all()?.into_iter().find(|server| server.major == major))
    }

    /// The newest server that is set up.
    pub fn newest() -> Result<Server> {
        match Server::all()?.pop() {
            Some(server) => Ok(server),
            None => bail!("no PostgreSQL is set up: run make setup"),
        }
    }

    /// Path of one of the server's programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// A new database with the extension, in the cluster that the tests of this process share.
    pub async fn database(&self) -> Result<Database> {
        Database::create(&self.shared().await?, true).await
    }

    /// The cluster that the tests of this process share. It ends with the process.
    pub async fn shared(&self) -> Result<Arc<Cluster>> {
        static SHARED: LazyLock<Mutex<Vec<Arc<Cluster>>>> = LazyLock::new(Mutex::default);
        let mut shared = SHARED.lock().await;
        if let Some(cluster) = shared.iter().find(|cluster| cluster.server.major == self.major) {
            return Ok(cluster.clone());
        }
        let cluster = Arc::new(Cluster::start(self, &[]).await?);
        shared.push(cluster.clone());
        Ok(cluster)
    }

    /// A cluster that nobody else uses, with settings of its own: for crashes, and for what the whole server feels.
    pub async fn cluster(&self, settings: &[(&str, &str)]) -> Result<Arc<Cluster>> {
        Ok(Arc::new(Cluster::start(self, settings).await?))
    }
}
